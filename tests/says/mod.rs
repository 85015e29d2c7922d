//! What errors must say.

/// That `error` is one line and has each of `parts` in it.
#[track_caller]
pub fn assert_says(error: &(impl std::fmt::Display + ?Sized), parts: &[&str]) {
    let error = format!("{error:#}");
    assert!(!error.contains('\n'), "{error}");
    for part in parts {
        assert!(error.contains(part), "no {part:?} in {error:?}");
    }
}
