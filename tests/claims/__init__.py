"""Tests of moe_cli.claims."""
