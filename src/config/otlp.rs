//! Where signals are sent by OTLP, as the setting and the standard variables say.

use std::{path::PathBuf, time::Duration};

use super::{
    fault::{Faults, Got},
    resolve::{Env, Resolved},
    settings::Key,
    url,
};

/// What a collector has to take a batch, where `OTEL_EXPORTER_OTLP_TIMEOUT` says nothing.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where and how one signal is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    pub protocol: OtlpProtocol,
    /// As it is called: over HTTP with its path.
    pub endpoint: String,
    /// Of one batch.
    pub timeout: Duration,
    pub gzip: bool,
    /// PEM file of the only authority to be trusted; None: the system's.
    pub certificate: Option<PathBuf>,
}

/// How a collector is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpProtocol {
    Grpc,
    /// Protobuf over HTTP.
    Http,
}

/// The collector of each signal that is sent.
#[derive(Clone, Debug, Default)]
pub struct Collectors {
    pub traces: Option<Collector>,
    pub metrics: Option<Collector>,
    pub logs: Option<Collector>,
}

/// Reads the variables of all signals.
pub(super) fn collectors(settings: &Resolved, env: Env<'_>, faults: &mut Faults) -> Collectors {
    let key = Key::OtlpEndpoint;
    // A wrong one has its own fault.
    let base = settings.text(key).filter(|_| settings.sound(&[key]));
    let mut read = |signal| Reader { signal, env, faults }.read(base.as_deref());
    Collectors { traces: read("traces"), metrics: read("metrics"), logs: read("logs") }
}

/// The variables of one signal.
struct Reader<'a> {
    signal: &'static str,
    env: Env<'a>,
    faults: &'a mut Faults,
}

impl Reader<'_> {
    /// None where nobody asked for the signal: no endpoint, `OTEL_SDK_DISABLED=true`, or
    /// `OTEL_{TRACES,METRICS,LOGS}_EXPORTER` names others than `otlp`. What is wrong is a
    /// fault, and read as if it were not there.
    fn read(mut self, base: Option<&str>) -> Option<Collector> {
        let upper = self.signal.to_ascii_uppercase();
        let exporters = self.set(&format!("OTEL_{upper}_EXPORTER"));
        let wanted = exporters.is_none_or(|list| list.split(',').any(|one| one.trim() == "otlp"));
        let disabled = self.set("OTEL_SDK_DISABLED");
        if disabled.is_some_and(|text| text.eq_ignore_ascii_case("true")) || !wanted {
            return None;
        }
        let name = format!("OTEL_EXPORTER_OTLP_{upper}_ENDPOINT");
        let own = self.set(&name);
        if own.is_none() && base.is_none() {
            return None;
        }
        if let Some(text) = &own
            && let Err(expected) = url::http(text)
        {
            self.fault(name, &url::redact(text), &expected);
        }
        let word = "grpc or http/protobuf";
        let protocol = self.named("PROTOCOL", word, |text| match text {
            "grpc" => Some(OtlpProtocol::Grpc),
            "http/protobuf" => Some(OtlpProtocol::Http),
            _ => None,
        });
        let protocol = protocol.unwrap_or(OtlpProtocol::Grpc);
        let timeout = self.named("TIMEOUT", "a number of milliseconds above 0", |text| {
            text.parse().ok().filter(|millis| *millis > 0).map(Duration::from_millis)
        });
        let gzip = self.named("COMPRESSION", "gzip or none", |text| match text {
            "gzip" => Some(true),
            "none" => Some(false),
            _ => None,
        });
        let endpoint = match own {
            Some(own) => own,
            None if protocol == OtlpProtocol::Grpc => base?.to_owned(),
            None => format!("{}/v1/{}", base?.trim_end_matches('/'), self.signal),
        };
        let is_tls = endpoint.starts_with("https://");
        let certificate = self.named("CERTIFICATE", "the path of a PEM file", |text| {
            let path = PathBuf::from(text);
            // Nobody reads it where nothing is encrypted.
            (!is_tls || path.is_file()).then_some(path)
        });
        Some(Collector {
            protocol,
            endpoint,
            timeout: timeout.unwrap_or(TIMEOUT),
            gzip: gzip.unwrap_or(false),
            certificate: certificate.filter(|_| is_tls),
        })
    }

    /// The signal's own variable, else that of all signals.
    fn named<T>(
        &mut self,
        what: &str,
        expected: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let own = format!("OTEL_EXPORTER_OTLP_{}_{what}", self.signal.to_ascii_uppercase());
        let all = format!("OTEL_EXPORTER_OTLP_{what}");
        let (text, name) =
            [own, all].into_iter().find_map(|name| Some((self.set(&name)?, name)))?;
        let value = read(text.trim());
        if value.is_none() {
            self.fault(name, &text, expected);
        }
        value
    }

    fn set(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|text| !text.is_empty())
    }

    /// One variable may be that of three signals and is wrong once.
    fn fault(&mut self, name: String, text: &str, expected: &str) {
        if !self.faults.iter().any(|fault| fault.place == name) {
            self.faults.push(name, Got::Text(text.to_owned()), expected);
        }
    }
}
