//! Configuration files.

use std::sync::Arc;

use super::{
    Route, ServeArgs,
    auth::parse_keys,
    dump::dump,
    fault::Faults,
    file::File,
    load::{judge, load},
    settings::Key,
    value::Kind,
};

/// The routes of a small configuration, for others that need some.
pub(crate) fn routes() -> Vec<Arc<Route>> {
    let args = ServeArgs::default().with(Key::Upstream, "ws://127.0.0.1:9000");
    load(&args, &|_| None).map(|loaded| loaded.config.routes).unwrap_or_default()
}

/// A file of settings and tables: each is judged, a sound one can be dumped, and the dump is
/// sound again.
pub fn file(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut faults = Faults::default();
    let mut file = File::parse("fuzz.toml", text, &mut faults);
    // What a path names is not the file's own text.
    file.scalars.retain(|key, _| !matches!(key.setting().kind, Kind::Path));
    let env = |name: &str| (name == "KEY").then(|| "a credential".to_owned());
    match judge(file, &ServeArgs::default(), &env, faults) {
        Err(faults) => assert!(!faults.to_string().is_empty()),
        Ok(loaded) => {
            let mut faults = Faults::default();
            drop(File::parse("dump.toml", &dump(&loaded), &mut faults));
            assert_eq!(faults, Faults::default());
        }
    }
}

/// A file of API keys.
pub fn keys(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(keys) = parse_keys(text, &[]) {
        assert!(keys.len() <= text.lines().count());
    }
}
