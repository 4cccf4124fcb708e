"""Models out to and in from Hugging Face folders: settings, weights and tokenizers, without running code of others."""
