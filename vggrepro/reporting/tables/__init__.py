"""The paper's tables, measured beside printed."""
