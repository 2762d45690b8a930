//! Who may use the client listener.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::Duration,
};

use http::Uri;

use super::{
    Secret,
    fault::{Faults, Got},
    file::{File, read_bounded},
    resolve::Resolved,
    settings::Key,
    value::{Kind, sha256},
};

/// Largest file of keys, in bytes: room for about 10,000.
const KEYS_FILE_MAX: u64 = 1 << 20;

/// Who may use the client listener.
#[derive(Clone, Debug)]
pub enum Auth {
    /// Nobody is asked; everybody is one principal.
    None,
    /// The credential is the upstream's business; its keyed hash is the principal.
    Passthrough,
    /// Known keys, by SHA-256.
    ApiKey(ApiKeys),
    /// Tokens that a known issuer signed.
    Jwt(Jwt),
}

/// The accepted keys.
#[derive(Clone, Debug)]
pub struct ApiKeys {
    /// Those of the configuration; they hold as long as the process.
    pub fixed: Vec<ApiKey>,
    /// A file of more, which is watched.
    pub file: Option<PathBuf>,
}

/// One accepted key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// The principal's name.
    pub name: String,
    pub sha256: [u8; 32],
}

/// How a token is judged.
#[derive(Clone, Debug)]
pub struct Jwt {
    pub jwks: Jwks,
    /// By their names in RFC 7518.
    pub algorithms: Vec<String>,
    pub issuer: Option<String>,
    pub audience: String,
    /// Claim that names the principal.
    pub principal_claim: String,
    /// Tolerance of clocks.
    pub leeway: Duration,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug)]
pub enum Jwks {
    Url(Uri),
    File(PathBuf),
}

/// The settings of one mode; those of the others are faults, since who gives them expects
/// more than they do.
pub(super) fn build(settings: &Resolved, file: &File, faults: &mut Faults) -> Auth {
    let mode = settings.text(Key::AuthMode).unwrap_or_default();
    if mode != "api_key" {
        no_keys(settings, file, &mode, faults);
    }
    if mode != "jwt" {
        for key in [Key::JwtJwksUrl, Key::JwtJwksFile, Key::JwtIssuer, Key::JwtAudience] {
            stray(settings, key, &mode, faults);
        }
    }
    match mode.as_str() {
        "none" => Auth::None,
        "api_key" => Auth::ApiKey(keys(settings, file, faults)),
        "jwt" => jwt(settings, faults).map_or(Auth::None, Auth::Jwt),
        _ => Auth::Passthrough,
    }
}

fn stray(settings: &Resolved, key: Key, mode: &str, faults: &mut Faults) {
    if settings.sound(&[Key::AuthMode, key]) && settings.given(key).text.is_some() {
        settings.fault(key, format!("nothing, since auth-mode is {mode}"), faults);
    }
}

fn no_keys(settings: &Resolved, file: &File, mode: &str, faults: &mut Faults) {
    stray(settings, Key::AuthKeysFile, mode, faults);
    if let Some(key) = file.keys.first().filter(|_| settings.sound(&[Key::AuthMode])) {
        let place = file.place(&key.place, "name");
        let got = Got::Text(key.name.clone().unwrap_or_default());
        faults.push(place, got, format!("no keys, since auth-mode is {mode}"));
    }
}

fn keys(settings: &Resolved, file: &File, faults: &mut Faults) -> ApiKeys {
    let path = settings.text(Key::AuthKeysFile).map(PathBuf::from);
    if file.keys.is_empty() && path.is_none() && settings.sound(&[Key::AuthKeysFile]) {
        let expected =
            "at least one [[auth.key]] in the file (--config), or auth-keys-file, for this mode";
        settings.fault(Key::AuthMode, expected, faults);
    }
    let mut fixed: Vec<ApiKey> = Vec::new();
    for entry in &file.keys {
        let digest = entry.sha256.as_deref().and_then(sha256);
        let (Some(name), Some(sha256)) = (&entry.name, digest) else { continue };
        // Two names of one digest would make the principal a matter of order; one name of
        // two digests is how a key is rotated.
        if fixed.iter().any(|key| key.sha256 == sha256) {
            let got = Got::Secret(Secret::new(""));
            faults.push(file.place(&entry.place, "sha256"), got, "a key that stands only once");
        }
        fixed.push(ApiKey { name: name.clone(), sha256 });
    }
    if let Some(Err(expected)) = path.as_deref().map(|path| read_keys(path, &fixed)) {
        settings.fault(Key::AuthKeysFile, expected, faults);
    }
    ApiKeys { fixed, file: path }
}

/// The keys of a file that is watched.
///
/// # Errors
/// What is wrong with it; nothing of its text but names.
pub fn read_keys(path: &Path, fixed: &[ApiKey]) -> Result<Vec<ApiKey>, String> {
    let text = read_bounded(path, KEYS_FILE_MAX)
        .map_err(|reason| format!("a readable file of at most 1MiB ({reason})"))?;
    parse_keys(&text, fixed)
}

/// The same from the file's text.
pub(super) fn parse_keys(text: &str, fixed: &[ApiKey]) -> Result<Vec<ApiKey>, String> {
    let mut seen: HashSet<[u8; 32]> = fixed.iter().map(|key| key.sha256).collect();
    let mut keys = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parts = line.split_once(char::is_whitespace);
        let key = parts.and_then(|(name, digest)| {
            Kind::Name.read(name).ok()?;
            Some(ApiKey { name: name.to_owned(), sha256: sha256(digest.trim())? })
        });
        let Some(key) = key else {
            return Err(format!("a name and 64 hexadecimal digits in line {}", at + 1));
        };
        if !seen.insert(key.sha256) {
            return Err(format!("a key that stands only once, not again in line {}", at + 1));
        }
        keys.push(key);
    }
    Ok(keys)
}

fn jwt(settings: &Resolved, faults: &mut Faults) -> Option<Jwt> {
    let keys = [Key::JwtJwksUrl, Key::JwtJwksFile, Key::JwtAudience];
    if !settings.sound(&keys) {
        return None;
    }
    let file = settings.text(Key::JwtJwksFile).map(PathBuf::from);
    let jwks = match (settings.uri(Key::JwtJwksUrl), file) {
        (Some(url), None) => Some(Jwks::Url(url)),
        (None, Some(file)) => Some(Jwks::File(file)),
        (Some(_), Some(_)) => {
            let expected = "only one of jwt-jwks-url and jwt-jwks-file";
            settings.fault(Key::JwtJwksFile, expected, faults);
            None
        }
        (None, None) => {
            let expected = "the issuer's keys, or jwt-jwks-file, since auth-mode is jwt";
            settings.fault(Key::JwtJwksUrl, expected, faults);
            None
        }
    };
    let audience = settings.text(Key::JwtAudience);
    if audience.is_none() {
        let expected = "the audience that tokens for this service name, since auth-mode is jwt";
        settings.fault(Key::JwtAudience, expected, faults);
    }
    Some(Jwt {
        jwks: jwks?,
        algorithms: settings.texts(Key::JwtAlgorithms),
        issuer: settings.text(Key::JwtIssuer),
        audience: audience?,
        principal_claim: settings.text(Key::JwtPrincipalClaim).unwrap_or_default(),
        leeway: settings.duration(Key::JwtLeeway),
    })
}
