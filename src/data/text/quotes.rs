//! Quotes in CSV files.

/// The line in which the first row begins that has text after a closing quote.
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
