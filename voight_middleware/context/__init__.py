"""Who is calling: tags in one context variable."""
