//! Checks of error messages.

/// Checks that `error` is one line with each of `parts`.
///
/// The backtrace that candle adds with `RUST_BACKTRACE` is ignored.
#[track_caller]
pub fn assert_says(error: &(impl std::fmt::Display + ?Sized), parts: &[&str]) {
    let error = format!("{error:#}");
    let message = error.split("\n   0: ").next().unwrap_or_default();
    assert!(!message.contains('\n'), "{error}");
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
}
