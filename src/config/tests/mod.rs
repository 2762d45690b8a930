//! What an operator would notice of loading, checking and showing a configuration.

mod database;
mod documents;
mod faults;
mod otlp;
mod precedence;

use std::collections::HashMap;

use super::{
    Config, Faults, ServeArgs,
    load::{Loaded, load},
    settings::Key,
};

/// Flags, variables and the text of a file, to be loaded without touching the process.
#[derive(Default)]
struct Given {
    args: ServeArgs,
    env: HashMap<String, String>,
    file: Option<String>,
}

impl Given {
    /// A configuration that is complete: it has the upstream shortcut and nothing else.
    fn upstream() -> Self {
        Self::default().flag(Key::Upstream, "ws://127.0.0.1:9000")
    }

    fn flag(mut self, key: Key, value: &str) -> Self {
        self.args = self.args.with(key, value);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    fn file(mut self, text: &str) -> Self {
        self.file = Some(text.into());
        self
    }

    fn loaded(&self) -> Result<Loaded, Faults> {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        let mut args = self.args.clone();
        if let Some(text) = &self.file {
            std::fs::write(file.path(), text).unwrap();
            args = args.with(Key::Config, file.path().to_str().unwrap());
        }
        load(&args, &|name| self.env.get(name).cloned())
    }

    fn config(&self) -> Config {
        self.loaded().unwrap_or_else(|faults| panic!("{faults}")).config
    }

    fn faults(&self) -> String {
        match self.loaded() {
            Ok(_) => panic!("expected faults"),
            Err(faults) => faults.to_string(),
        }
    }

    /// The one fault there is, which must mention all of these.
    #[track_caller]
    fn refused_with(&self, mentions: &[&str]) {
        let faults = self.faults();
        assert_eq!(faults.lines().count(), 1, "{faults}");
        for mention in mentions {
            assert!(faults.contains(mention), "{mention:?} is not in: {faults}");
        }
    }
}

/// An upstream and a route, to which tests add.
const ROUTED: &str = r#"
[[upstream]]
name = "up"
url = "ws://127.0.0.1:9000/v1/responses"
[[route]]
path = "/v1/responses"
profile = "responses"
upstream = "up"
"#;
