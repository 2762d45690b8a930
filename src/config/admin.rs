//! What the admin listener asks of who changes something.

use std::path::{Path, PathBuf};

use super::{
    AdminToken, fault::Faults, file::read_bounded, resolve::Resolved, settings::Key,
    value::SECRET_MIN,
};

/// Largest file of a token, in bytes.
const TOKEN_FILE_MAX: u64 = 4096;

/// The token or its file, which must be readable at start.
pub(super) fn token(settings: &Resolved, faults: &mut Faults) -> AdminToken {
    let direct = settings.secret(Key::AdminToken);
    let Some(path) = settings.text(Key::AdminTokenFile) else {
        return direct.map_or(AdminToken::None, AdminToken::Fixed);
    };
    if direct.is_some() {
        let expected = "only one of admin-token and admin-token-file";
        settings.fault(Key::AdminTokenFile, expected, faults);
    }
    match read_bounded(Path::new(&path), TOKEN_FILE_MAX) {
        Ok(text) if AdminToken::parse(text.as_bytes()).is_some() => {}
        Ok(_) => {
            let expected = format!("a file with a token of at least {SECRET_MIN} characters");
            settings.fault(Key::AdminTokenFile, expected, faults);
        }
        Err(reason) => {
            let expected = format!("a readable file of at most 4KiB ({reason})");
            settings.fault(Key::AdminTokenFile, expected, faults);
        }
    }
    AdminToken::File(PathBuf::from(path))
}
