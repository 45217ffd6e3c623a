//! The environment. Nothing else reads it, so that this file's callers are the whole list of what it can change.

/// The variable `name`, if it is set and not empty.
#[allow(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the environment"
)]
pub fn read(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?;
    let value = value.to_string_lossy().into_owned();
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_what_is_set_and_nothing_else() {
        // Cargo sets the first for every test; setting one ourselves would race with other threads.
        assert_eq!(
            super::read("CARGO_PKG_NAME").as_deref(),
            Some("weft-runtime")
        );
        assert_eq!(super::read("WEFT_TEST_SURELY_NOT_SET"), None);
    }
}
