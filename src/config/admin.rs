//! What the admin listener asks of who changes something.

use super::{
    AdminToken, fault::Faults, mounted, resolve::Resolved, settings::Key, value::SECRET_MIN,
};

/// The token or its file, which must be readable at start.
pub(super) fn token(settings: &Resolved, faults: &mut Faults) -> AdminToken {
    let keys = [Key::AdminToken, Key::AdminTokenFile];
    let read = |text: &str| AdminToken::parse(text.as_bytes());
    let expected = format!("a token of at least {SECRET_MIN} characters");
    let secret = mounted::either(settings, keys, read, &expected, faults);
    match (settings.text(Key::AdminTokenFile), secret) {
        (Some(path), _) => AdminToken::File(path.into()),
        (None, Some(secret)) => AdminToken::Fixed(secret),
        (None, None) => AdminToken::None,
    }
}
