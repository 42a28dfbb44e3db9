"""Where the table comes from: settings, the static file, health verdicts. Never meets `edge`."""
