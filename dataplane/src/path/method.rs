//! Methods, as they stand in routes and in `allow` rules.

use http::Method;

use super::Invalid;

/// Reads a method; one that only differs from a known one by letter case is a slip, not a method of its own.
pub fn method(text: &str) -> Result<Method, Invalid> {
    let upper = text.to_ascii_uppercase();
    match Method::from_bytes(text.as_bytes()) {
        Ok(method) if text == upper => Ok(method),
        Ok(_) => Err(Invalid {
            what: format!("the method `{text}` is in lower case; methods are case-sensitive"),
            cure: format!("write `{upper}`"),
        }),
        Err(_) => Err(Invalid {
            what: format!("`{text}` is not a method"),
            cure: "write a method such as `GET`".to_owned(),
        }),
    }
}
