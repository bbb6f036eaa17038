"""Tests of Tailrace."""
