//! URLs: what may be connected to, and how much of a URL may be shown.

use std::fmt::Write as _;

use http::{
    Uri,
    uri::{PathAndQuery, Scheme},
};

/// An upstream's URL in its WebSocket form (`http` becomes `ws`).
///
/// # Errors
/// What would be right, holding nothing of `text`.
pub fn upstream(text: &str) -> Result<Uri, String> {
    let uri = parse(text, &["ws", "wss", "http", "https"])?;
    let secure = matches!(uri.scheme_str(), Some("wss" | "https"));
    rebuild(uri, if secure { "wss" } else { "ws" })
}

/// A URL for plain requests, such as a collector's.
///
/// # Errors
/// What would be right, holding nothing of `text`.
pub fn http(text: &str) -> Result<Uri, String> {
    parse(text, &["http", "https"])
}

fn parse(text: &str, schemes: &[&str]) -> Result<Uri, String> {
    let expected = || format!("a URL of scheme {}, with a host", schemes.join(", "));
    // `Uri` drops a fragment without a word.
    if text.contains('#') {
        return Err(format!("{}, without a fragment (#…)", expected()));
    }
    let uri: Uri = text.parse().map_err(|_| expected())?;
    let authority = uri.authority().ok_or_else(expected)?;
    if authority.as_str().contains('@') {
        return Err(format!("{}, without user or password in it", expected()));
    }
    // `Uri` takes `host:` and `host:99999`, which nothing can be reached at.
    let after_host = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    let port_is_sound = after_host.is_empty() || authority.port_u16().is_some_and(|port| port != 0);
    let scheme = uri.scheme_str().unwrap_or_default();
    if !schemes.contains(&scheme) || authority.host().is_empty() || !port_is_sound {
        return Err(expected());
    }
    Ok(uri)
}

fn rebuild(uri: Uri, scheme: &'static str) -> Result<Uri, String> {
    let mut parts = uri.into_parts();
    parts.scheme = Scheme::try_from(scheme).ok();
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    Uri::from_parts(parts).map_err(|_| "a URL with scheme, host and path".into())
}

/// `uri` with `path` in the place of an empty one.
#[must_use]
pub fn with_default_path(uri: Uri, path: &'static str) -> Uri {
    if uri.path() != "/" || uri.query().is_some() {
        return uri;
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static(path));
    Uri::from_parts(parts).unwrap_or(uri)
}

/// Whether `text` names a database that the store can open.
#[must_use]
pub fn is_database(text: &str, sqlite_too: bool) -> bool {
    let postgres = ["postgres://", "postgresql://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
        .is_some_and(|rest| !rest.is_empty());
    let sqlite =
        text.strip_prefix("sqlite:").is_some_and(|path| !path.trim_start_matches('/').is_empty());
    postgres || (sqlite_too && sqlite)
}

/// Whether a database's URL holds a password, as its user's or as a parameter.
#[must_use]
pub fn has_password(text: &str) -> bool {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let user = authority.rsplit_once('@').map(|(user, _)| user);
    let query = tail.split_once('?').map_or("", |(_, query)| query);
    user.is_some_and(|user| user.contains(':'))
        || query.split('&').any(|pair| pair.starts_with("password="))
}

/// A database's URL with `password`, whatever its characters, as a parameter: there it needs no
/// user or host before it.
#[must_use]
pub fn with_password(text: &str, password: &str) -> String {
    let (text, _fragment) = text.split_once('#').unwrap_or((text, ""));
    let mut url = format!("{text}{}password=", if text.contains('?') { '&' } else { '?' });
    for byte in password.bytes() {
        if byte.is_ascii_alphanumeric() {
            url.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url
}

/// Whether `text` is a web origin (RFC 6454): a scheme, a host, perhaps a port, no more.
#[must_use]
pub fn is_origin(text: &str) -> bool {
    let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    authority.is_some_and(|authority| !authority.contains(['/', '?', '#', '@']))
        && http(text).is_ok()
}

/// Whether a host is this machine itself.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// `text` with passwords, and query values whose names speak of credentials, as `***`.
/// Errs on the side of hiding: it also takes what is not a URL at all.
#[must_use]
pub fn redact(text: &str) -> String {
    if text.starts_with("sqlite:") {
        return text.to_owned();
    }
    let (scheme, rest) = match text.find("://") {
        Some(at) => text.split_at(at + 3),
        None => ("", text),
    };
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if tail.contains('@') {
        // Perhaps a password with an unescaped '/' or '?': nothing of it is safe to show.
        return format!("{scheme}***");
    }
    let mut shown = scheme.to_owned();
    match authority.rsplit_once('@') {
        Some((user, host)) => {
            let name = user.split_once(':').map(|(name, _)| name);
            let postgres = scheme.starts_with("postgres");
            match name {
                Some(name) => shown.extend([name, ":***@", host]),
                None if postgres => shown.push_str(authority),
                None => shown.extend(["***@", host]),
            }
        }
        None => shown += authority,
    }
    let (tail, fragment) = tail.split_once('#').map_or((tail, None), |(t, f)| (t, Some(f)));
    let (path, query) = tail.split_once('?').map_or((tail, None), |(p, q)| (p, Some(q)));
    shown += path;
    for (index, pair) in query.iter().flat_map(|query| query.split('&')).enumerate() {
        shown.push(if index == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((name, _)) if is_credential(name) => shown.extend([name, "=***"]),
            _ => shown += pair,
        }
    }
    if fragment.is_some() {
        shown += "#***";
    }
    shown
}

fn is_credential(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["key", "token", "secret", "pass", "pwd", "sig", "auth", "cred", "code"]
        .iter()
        .any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_of_an_upstream_becomes_its_websocket_form() {
        for (given, kept) in [
            ("wss://api.openai.com/v1/responses", "wss://api.openai.com/v1/responses"),
            ("https://h/v1?a=b", "wss://h/v1?a=b"),
            ("http://127.0.0.1:9000", "ws://127.0.0.1:9000/"),
            ("ws://[::1]:1/x", "ws://[::1]:1/x"),
        ] {
            assert_eq!(upstream(given).unwrap().to_string(), kept);
        }
    }

    #[test]
    fn an_unusable_url_is_refused_without_repeating_it() {
        for text in [
            "ftp://hidden",
            "hidden",
            "/hidden",
            "wss://u:hidden@h/",
            "wss://hidden@h/",
            "wss://h/#hidden",
            "wss://",
            "wss://h:99999/",
            "wss://h:/",
            "wss://h:0/",
            "",
        ] {
            let expected = upstream(text).unwrap_err();
            assert!(!expected.contains("hidden"), "{text}: {expected}");
        }
        assert!(http("wss://h/").is_err());
    }

    #[test]
    fn a_shown_url_holds_no_credential() {
        for text in [
            "postgres://u:hidden@h/d",
            "postgres://u:hi/d@hidden@h/d",
            "wss://u:hidden@h/x",
            "wss://h/x?api_key=hidden&a=b",
            "postgres://h/d?password=hidden",
            "u:hidden@h",
            "postgres://u:hid?den@h/d?sslmode=on",
            "wss://hidden@h/",
            "wss://h/#hidden",
        ] {
            let shown = redact(text);
            assert!(!shown.contains("hid"), "{shown}");
            assert!(shown.contains("***"), "{shown}");
        }
        assert_eq!(redact("postgres://u@h/d?sslmode=require"), "postgres://u@h/d?sslmode=require");
    }

    #[test]
    fn a_bare_upstream_gets_the_path_of_the_responses_api() {
        let bare = upstream("http://h:1").unwrap();
        assert_eq!(with_default_path(bare, "/v1/responses").path(), "/v1/responses");
        let full = upstream("http://h:1/other").unwrap();
        assert_eq!(with_default_path(full, "/v1/responses").path(), "/other");
    }
}
