"""Weights by name: files, runs, published checkpoints, the Hugging Face hub; downloaded, checked, converted, cached."""
