//! What must hold between settings that are each sound.

use std::{net::SocketAddr, sync::Arc};

use super::{
    Auth, Endpoint, Upstream,
    database::Database,
    fault::Faults,
    resolve::Resolved,
    settings::Key,
    url::is_loopback,
    value::{duration_text, split_host_port},
};

/// Adds a fault for every relation that does not hold.
pub fn relations(settings: &Resolved, faults: &mut Faults) {
    ports(settings, faults);
    reachable(settings, faults);
    lease(settings, faults);
}

fn ports(settings: &Resolved, faults: &mut Faults) {
    let listeners = [Key::Listen, Key::PeerListen, Key::AdminListen];
    for (index, key) in listeners.iter().enumerate() {
        for other in &listeners[..index] {
            if settings.sound(&[*key, *other])
                && clash(settings.address(*key), settings.address(*other))
            {
                let expected = format!("a port that {} does not use", other.setting().name);
                settings.fault(*key, expected, faults);
            }
        }
    }
}

/// Whether two listeners cannot both be bound. Port 0 is a fresh one each time.
fn clash(one: SocketAddr, two: SocketAddr) -> bool {
    let overlap = one.ip() == two.ip() || one.ip().is_unspecified() || two.ip().is_unspecified();
    one.port() != 0 && one.port() == two.port() && overlap
}

fn reachable(settings: &Resolved, faults: &mut Faults) {
    let judged = [Key::PeerListen, Key::Advertise, Key::HeadlessService];
    let unset =
        settings.text(Key::Advertise).is_none() && settings.text(Key::HeadlessService).is_none();
    if settings.sound(&judged) && unset && settings.address(Key::PeerListen).ip().is_unspecified() {
        let expected = "the host:port at which others reach this node, since peer-listen is not \
                        an address that they could use";
        settings.fault(Key::Advertise, expected, faults);
    }
}

/// A lease survives two heartbeats that are lost, and ends here before it does in the store, also
/// where the store's clock was set a little.
fn lease(settings: &Resolved, faults: &mut Faults) {
    if !settings.sound(&[Key::LeaseTtl, Key::LeaseMargin, Key::HeartbeatInterval]) {
        return;
    }
    let (ttl, margin) = (settings.duration(Key::LeaseTtl), settings.duration(Key::LeaseMargin));
    if margin * 2 > ttl {
        let half = duration_text(ttl / 2);
        settings.fault(Key::LeaseMargin, format!("at most half of lease-ttl ({half})"), faults);
        return;
    }
    // A step of the database's clock by a tenth of a lease is not noticed (`ownership::reaper`).
    if margin * 8 < ttl {
        let least = duration_text(ttl / 8);
        let expected = format!("at least an eighth of lease-ttl ({least})");
        settings.fault(Key::LeaseMargin, expected, faults);
        return;
    }
    let held = ttl.saturating_sub(margin);
    if settings.duration(Key::HeartbeatInterval) * 3 > held {
        let third = duration_text(held / 3);
        let expected = format!("at most a third of lease-ttl less lease-margin ({third})");
        settings.fault(Key::HeartbeatInterval, expected, faults);
    }
}

/// What works, but hardly as intended.
pub fn warn(
    settings: &Resolved,
    database: &Database,
    upstreams: &[Arc<Upstream>],
    auth: &Auth,
    warnings: &mut Vec<String>,
) {
    let beyond = settings.text(Key::Advertise).is_some_and(|address| {
        split_host_port(&address).is_some_and(|(host, _)| !is_loopback(host))
    });
    if beyond && database.is_sqlite() {
        warnings.push(
            "database-url: SQLite serves one machine only, and this node advertises itself to \
             others; use postgres:// for a ring of several"
                .into(),
        );
    }
    let open = !settings.address(Key::Listen).ip().is_loopback();
    for upstream in upstreams {
        warn_of(upstream, open, auth, warnings);
    }
}

fn warn_of(upstream: &Upstream, open: bool, auth: &Auth, warnings: &mut Vec<String>) {
    let name = &upstream.name;
    let ours = matches!(auth, Auth::ApiKey(_) | Auth::Jwt(_));
    let any = |judge: fn(&Endpoint) -> bool| upstream.endpoints.iter().any(judge);
    if any(Endpoint::is_operators) && open && !ours {
        warnings.push(format!(
            "upstream {name}: whoever reaches the client listener uses the operator's \
             credential; set auth.mode to api_key or jwt"
        ));
    }
    if any(|endpoint| !endpoint.is_operators()) && ours {
        warnings.push(format!(
            "upstream {name}: auth is passthrough, but what clients show is meant for \
             ringspan and is not passed on; set its auth to {{ bearer_env = … }}"
        ));
    }
    let exposed = |endpoint: &Endpoint| {
        endpoint.is_operators()
            && endpoint.url.scheme_str() == Some("ws")
            && !endpoint.url.host().is_some_and(is_loopback)
    };
    if any(exposed) {
        warnings.push(format!(
            "upstream {name}: the operator's credential crosses the network in plain text; \
             use wss://"
        ));
    }
    if any(Endpoint::is_operators) && any(|endpoint| !endpoint.is_operators()) {
        warnings.push(format!(
            "upstream {name}: some endpoints see the client's credential and others the \
             operator's, by which session it is"
        ));
    }
}
