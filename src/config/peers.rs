//! How nodes prove themselves to each other, and whether they have to.

use std::path::{Path, PathBuf};

use super::{
    PeerSecurity, Secret,
    fault::Faults,
    mounted,
    resolve::Resolved,
    settings::Key,
    url::is_loopback,
    value::{SECRET_MIN, split_host_port},
};

/// Chooses the one way that was configured.
pub fn security(settings: &Resolved, faults: &mut Faults) -> PeerSecurity {
    let mtls = mtls(settings, faults);
    let token = token(settings, faults);
    match (mtls, token) {
        (Some(_), Some(_)) => {
            let key = [Key::PeerToken, Key::PeerTokenFile]
                .into_iter()
                .find(|key| settings.given(*key).text.is_some())
                .unwrap_or(Key::PeerToken);
            settings.fault(key, "either a shared token or peer-cert, not both", faults);
            PeerSecurity::Plaintext
        }
        (Some(mtls), None) => mtls,
        (None, Some(token)) => PeerSecurity::Token(token),
        (None, None) => {
            let asked =
                [Key::PeerToken, Key::PeerTokenFile, Key::PeerCert, Key::PeerKey, Key::PeerCa];
            // What was asked for and failed has its own fault.
            let none_asked = settings.sound(&asked)
                && asked.iter().all(|key| settings.given(*key).text.is_none());
            if none_asked {
                plaintext(settings, faults);
            }
            PeerSecurity::Plaintext
        }
    }
}

fn mtls(settings: &Resolved, faults: &mut Faults) -> Option<PeerSecurity> {
    let files = [Key::PeerCert, Key::PeerKey, Key::PeerCa];
    if files.iter().all(|key| settings.given(*key).text.is_none()) {
        return None;
    }
    let mut file = |key: Key| {
        let path = settings.text(key).map(PathBuf::from);
        if !path.as_deref().is_some_and(Path::is_file) {
            let expected = "a PEM file; peer-cert, peer-key and peer-ca belong together";
            settings.fault(key, expected, faults);
            return None;
        }
        path
    };
    let [cert, key, ca] = files.map(&mut file);
    Some(PeerSecurity::Mtls { cert: cert?, key: key?, ca: ca? })
}

fn token(settings: &Resolved, faults: &mut Faults) -> Option<Secret> {
    let keys = [Key::PeerToken, Key::PeerTokenFile];
    let long_enough = |text: &str| text.chars().count() >= SECRET_MIN;
    let read = |text: &str| long_enough(text).then(|| Secret::new(text));
    let expected = format!("a token of at least {SECRET_MIN} characters");
    mounted::either(settings, keys, read, &expected, faults)
}

/// Refuses plaintext that would leave this machine, unless it was asked for.
fn plaintext(settings: &Resolved, faults: &mut Faults) {
    let judged = [Key::PeerListen, Key::Advertise, Key::StaticMembers, Key::PeerAllowPlaintext];
    if settings.switch(Key::PeerAllowPlaintext) || !settings.sound(&judged) {
        return;
    }
    let host = |address: &str| split_host_port(address).is_some_and(|(host, _)| is_loopback(host));
    let remedy = "a loopback address, or peer-token-file, peer-token or peer-cert to protect the \
                  peers' traffic, or peer-allow-plaintext where the network is trusted";
    if !settings.address(Key::PeerListen).ip().is_loopback() {
        settings.fault(Key::PeerListen, remedy, faults);
    } else if settings.text(Key::Advertise).is_some_and(|address| !host(&address)) {
        settings.fault(Key::Advertise, remedy, faults);
    } else if settings.members(Key::StaticMembers).iter().any(|(_, address)| !host(address)) {
        settings.fault(Key::StaticMembers, remedy, faults);
    }
}
