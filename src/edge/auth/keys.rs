//! Accepted API keys: those of the configuration, and those of a file that is watched.

use std::{path::PathBuf, sync::Arc, time::Duration};

use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::{ApiKey, ApiKeys, read_keys};

/// How often the file is looked at. Mounted secrets are replaced by renaming, which not
/// every file system announces; reading a small file is cheaper than being wrong.
const LOOK: Duration = Duration::from_secs(5);

/// A key that is accepted now.
#[derive(Debug)]
pub(super) struct Accepted {
    key: ApiKey,
    /// Cancelled when the key is accepted no more.
    pub(super) revoked: CancellationToken,
}

impl Accepted {
    fn new(key: ApiKey) -> Arc<Self> {
        Arc::new(Self { key, revoked: CancellationToken::new() })
    }

    /// The principal's name.
    pub(super) fn name(&self) -> &str {
        &self.key.name
    }
}

/// All keys that are accepted.
pub(super) struct Keys {
    fixed: Vec<ApiKey>,
    file: Option<PathBuf>,
    accepted: RwLock<Vec<Arc<Accepted>>>,
}

impl Keys {
    /// Keys as they are now; those of a file that cannot be read are none, until it can.
    pub(super) fn new(keys: ApiKeys) -> Arc<Self> {
        let accepted = keys.fixed.iter().cloned().map(Accepted::new).collect();
        let ApiKeys { fixed, file } = keys;
        let keys = Self { fixed, file, accepted: RwLock::new(accepted) };
        keys.look();
        Arc::new(keys)
    }

    /// The accepted key that was shown. Every key is compared, so that time does not tell
    /// which one was near.
    pub(super) fn find(&self, shown: &[u8]) -> Option<Arc<Accepted>> {
        let digest = Sha256::digest(shown);
        let mut found = None;
        for accepted in self.accepted.read().iter() {
            if bool::from(accepted.key.sha256.ct_eq(digest.as_slice())) {
                found = Some(Arc::clone(accepted));
            }
        }
        found
    }

    /// Follows the file until `stop`.
    pub(super) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        if self.file.is_none() {
            return;
        }
        while stop.run_until_cancelled(sleep(LOOK)).await.is_some() {
            let keys = Arc::clone(&self);
            // A file system may hang; a worker of the runtime must not.
            drop(tokio::task::spawn_blocking(move || keys.look()).await);
        }
    }

    /// Reads the file. One that is wrong changes nothing: a typing error must not lock
    /// everybody out.
    pub(super) fn look(&self) {
        let Some(path) = &self.file else { return };
        match read_keys(path, &self.fixed) {
            Ok(keys) => self.replace(&keys),
            Err(expected) => tracing::error!(
                file = %path.display(),
                "the file of API keys is not {expected}; the keys from before stay"
            ),
        }
    }

    fn replace(&self, from_file: &[ApiKey]) {
        let mut accepted = self.accepted.write();
        let wanted: Vec<&ApiKey> = self.fixed.iter().chain(from_file).collect();
        let unchanged = accepted.len() == wanted.len()
            && accepted.iter().zip(&wanted).all(|(accepted, wanted)| accepted.key == **wanted);
        if unchanged {
            return;
        }
        let next: Vec<_> = wanted
            .iter()
            .map(|wanted| {
                let kept = accepted.iter().find(|accepted| accepted.key == **wanted);
                kept.map_or_else(|| Accepted::new((*wanted).clone()), Arc::clone)
            })
            .collect();
        for gone in accepted.iter().filter(|old| !next.iter().any(|new| new.key == old.key)) {
            tracing::info!(principal = gone.name(), "an API key is accepted no more");
            gone.revoked.cancel();
        }
        tracing::info!(keys = next.len(), "the API keys changed");
        *accepted = next;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn line(name: &str, key: &str) -> String {
        use std::fmt::Write;
        let mut line = format!("{name} ");
        for byte in Sha256::digest(key.as_bytes()) {
            write!(line, "{byte:02x}").unwrap();
        }
        line + "\n"
    }

    fn write(file: &tempfile::NamedTempFile, text: &str) {
        file.as_file().set_len(0).unwrap();
        let mut at = file.reopen().unwrap();
        at.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn a_key_that_leaves_the_file_is_revoked_and_its_neighbour_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write(&file, &format!("# team keys\n{}\n{}", line("a", "one"), line("b", "two")));
        let keys = Keys::new(ApiKeys { fixed: Vec::new(), file: Some(file.path().into()) });
        let (one, two) = (keys.find(b"one").unwrap(), keys.find(b"two").unwrap());
        write(&file, &format!("{}{}", line("b", "two"), line("b", "three")));
        keys.look();
        assert!(one.revoked.is_cancelled());
        assert!(!two.revoked.is_cancelled());
        assert!(keys.find(b"one").is_none());
        assert_eq!(keys.find(b"three").unwrap().name(), "b");
    }

    #[test]
    fn a_file_that_is_wrong_changes_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write(&file, &line("a", "one"));
        let keys = Keys::new(ApiKeys { fixed: Vec::new(), file: Some(file.path().into()) });
        for wrong in ["a nonsense\n", "a\n", &line("a b", "x"), &line("a", "one").repeat(2)] {
            write(&file, wrong);
            keys.look();
            assert!(keys.find(b"one").is_some(), "{wrong:?}");
        }
        write(&file, "");
        keys.look();
        assert!(keys.find(b"one").is_none());
    }
}
