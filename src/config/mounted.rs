//! Secrets that may stand in a file of their own, such as one that the platform mounts, so that
//! neither a flag nor the environment has to hold them.

use std::path::Path;

use super::{fault::Faults, file::read_bounded, resolve::Resolved, settings::Key};

/// Largest file of a secret, in bytes.
const FILE_MAX: u64 = 4096;

/// What a setting holds, or the file that another one names; `read` judges both alike. White space
/// around a file's text is none of it. Nothing of either is in a fault: `expected` is all it says.
pub(super) fn either<T>(
    settings: &Resolved,
    [direct, file]: [Key; 2],
    read: impl Fn(&str) -> Option<T>,
    expected: &str,
    faults: &mut Faults,
) -> Option<T> {
    let given = settings.text(direct).and_then(|text| read(&text));
    if given.is_none() || settings.text(file).is_none() {
        return given.or_else(|| in_file(settings, file, read, expected, faults));
    }
    let names = [direct, file].map(|key| key.setting().name).join(" and ");
    settings.fault(file, format!("only one of {names}"), faults);
    given
}

/// What the file that a setting names holds, if it names one.
pub(super) fn in_file<T>(
    settings: &Resolved,
    file: Key,
    read: impl Fn(&str) -> Option<T>,
    expected: &str,
    faults: &mut Faults,
) -> Option<T> {
    let path = settings.text(file)?;
    let expected = match read_bounded(Path::new(&path), FILE_MAX) {
        Ok(text) => match read(text.trim()) {
            Some(value) => return Some(value),
            None => format!("a file with {expected}"),
        },
        Err(reason) => format!("a readable file of at most 4KiB ({reason})"),
    };
    settings.fault(file, expected, faults);
    None
}
