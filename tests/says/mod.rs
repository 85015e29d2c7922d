//! What errors must say.

/// That `error` is one line, but for the backtrace that candle adds where `RUST_BACKTRACE` asks for one, and has each of
/// `parts` in it.
#[track_caller]
pub fn assert_says(error: &(impl std::fmt::Display + ?Sized), parts: &[&str]) {
    let error = format!("{error:#}");
    let message = error.split("\n   0: ").next().unwrap_or_default();
    assert!(!message.contains('\n'), "{error}");
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
}
