//! Quotes in CSV files.

/// Finds the line in which the first row begins that has text after a closing quote.
pub(super) fn text_after_quote(text: &str, delimiter: u8) -> Option<usize> {
    let (mut line, mut row, mut is_quoted, mut at_start) = (1, 1, false, true);
    let mut bytes = text.bytes().peekable();
    while let Some(byte) = bytes.next() {
        line += usize::from(byte == b'\n');
        match byte {
            b'"' if is_quoted && bytes.next_if_eq(&b'"').is_some() => {}
            b'"' if is_quoted => {
                is_quoted = false;
                let next = bytes.clone().find(|next| !matches!(next, b' ' | b'\t'));
                if next.is_some_and(|next| next != delimiter && !matches!(next, b'\r' | b'\n')) {
                    return Some(row);
                }
            }
            _ if is_quoted => {}
            b'"' if at_start => (is_quoted, at_start) = (true, false),
            b'\r' | b'\n' => (row, at_start) = (line, true),
            _ => at_start = byte == delimiter,
        }
    }
    None
}

/// Whether quotes surround whole fields.
///
/// There are some, and none occurs elsewhere, except in pairs within such a field.
pub(in crate::data) fn are_fields_quoted(text: &str, delimiter: u8) -> bool {
    let (mut is_quoted, mut at_start, mut found) = (false, true, false);
    let mut bytes = text.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' if is_quoted && bytes.next_if_eq(&b'"').is_some() => {}
            b'"' if is_quoted => {
                is_quoted = false;
                if bytes.peek().is_some_and(|&next| next != delimiter && !matches!(next, b'\r' | b'\n')) {
                    return false;
                }
            }
            // A swallowed row shows that a quote never ended.
            _ if is_quoted && byte == delimiter => return false,
            _ if is_quoted => {}
            b'"' if at_start => (is_quoted, at_start, found) = (true, false, true),
            b'"' => return false,
            _ => at_start = byte == delimiter || matches!(byte, b'\r' | b'\n'),
        }
    }
    found && !is_quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_only_if_all_quotes_are() {
        for text in ["\"a\"\tb\n", "a\t\"b \"\"c\"\"\"\r\nd\te", "\"a\nb\"\tc"] {
            assert!(are_fields_quoted(text, b'\t'), "{text}");
        }
        for text in ["a\tb", "\"Yes\", he said\tb", "\"a\"\tb\nc \"d\"\te", "\"a\tb\nc\td\n"] {
            assert!(!are_fields_quoted(text, b'\t'), "{text}");
        }
    }
}
