//! White space as Python sees it.

/// Python's `str.isspace`: Unicode's `White_Space` and the separators U+001C to U+001F.
pub(crate) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
