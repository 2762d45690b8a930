//! One signal's collector, as the setting and the standard variables say. Pure but for the
//! certificate, which is read when the connection is set up.

use std::{path::PathBuf, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry_otlp::Protocol;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tonic::transport::{Certificate, ClientTlsConfig};

use super::Env;
use crate::telemetry::metrics::Signal;

/// What a collector has to take a batch, where `OTEL_EXPORTER_OTLP_TIMEOUT` says nothing.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a signal cannot be sent; names the variable, never a header's value.
#[derive(Debug, thiserror::Error)]
#[error("{signal} by OTLP: {what}")]
pub struct TargetError {
    signal: &'static str,
    what: String,
}

/// Where and how one signal is sent.
#[derive(Clone, Debug)]
pub struct Target {
    pub(super) signal: Signal,
    /// gRPC, or protobuf over HTTP.
    pub(super) protocol: Protocol,
    /// As it is called: over HTTP with its path.
    pub(super) endpoint: String,
    /// Of one batch.
    pub(super) timeout: Duration,
    pub(super) gzip: bool,
    /// PEM file of the only authority to be trusted; None: the system's.
    certificate: Option<PathBuf>,
}

impl Target {
    /// None where nobody asked for the signal: no endpoint, `OTEL_SDK_DISABLED=true`, or
    /// `OTEL_{TRACES,METRICS,LOGS}_EXPORTER` names others than `otlp`. `base` is the
    /// setting `otlp-endpoint`; a signal's own variable wins over it.
    ///
    /// # Errors
    /// A variable whose value means nothing here.
    pub(crate) fn of(
        signal: Signal,
        base: Option<&str>,
        env: &impl Env,
    ) -> Result<Option<Self>, TargetError> {
        let fault = |what: String| TargetError { signal: signal.as_str(), what };
        let upper = signal.as_str().to_ascii_uppercase();
        let is_true = |text: String| text.eq_ignore_ascii_case("true");
        let exporters = env(&format!("OTEL_{upper}_EXPORTER"));
        let wanted = exporters.is_none_or(|list| list.split(',').any(|one| one.trim() == "otlp"));
        if env("OTEL_SDK_DISABLED").is_some_and(is_true) || !wanted {
            return Ok(None);
        }
        let named = |what: &str| {
            let own = format!("OTEL_EXPORTER_OTLP_{upper}_{what}");
            let all = format!("OTEL_EXPORTER_OTLP_{what}");
            env(&own).map(|text| (own, text)).or_else(|| env(&all).map(|text| (all, text)))
        };
        let protocol = match named("PROTOCOL") {
            None => Protocol::Grpc,
            Some((name, text)) => match text.trim() {
                "grpc" => Protocol::Grpc,
                "http/protobuf" => Protocol::HttpBinary,
                _ => return Err(fault(format!("{name} is grpc or http/protobuf"))),
            },
        };
        let own = env(&format!("OTEL_EXPORTER_OTLP_{upper}_ENDPOINT"));
        let base = base.map(str::to_owned).or_else(|| env("OTEL_EXPORTER_OTLP_ENDPOINT"));
        let endpoint = match (own, base) {
            (Some(own), _) => own,
            (None, Some(base)) if protocol == Protocol::Grpc => base,
            (None, Some(base)) => {
                format!("{}/v1/{}", base.trim_end_matches('/'), signal.as_str())
            }
            (None, None) => return Ok(None),
        };
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            return Err(fault("an endpoint begins with http:// or https://".into()));
        }
        let timeout = match named("TIMEOUT") {
            None => TIMEOUT,
            Some((name, text)) => match text.trim().parse() {
                Ok(millis) if millis > 0 => Duration::from_millis(millis),
                _ => return Err(fault(format!("{name} is a number of milliseconds above 0"))),
            },
        };
        let gzip = match named("COMPRESSION") {
            None => false,
            Some((name, text)) => match text.trim() {
                "gzip" => true,
                "none" => false,
                _ => return Err(fault(format!("{name} is gzip or none"))),
            },
        };
        let certificate = named("CERTIFICATE").map(|(_, path)| path.into());
        Ok(Some(Self { signal, protocol, endpoint, timeout, gzip, certificate }))
    }

    /// What the headers variables ask for, percent-decoded. Pairs that are no header are
    /// left out, as the specification says.
    pub(super) fn headers(&self, env: &impl Env) -> HeaderMap {
        let upper = self.signal.as_str().to_ascii_uppercase();
        let text = env(&format!("OTEL_EXPORTER_OTLP_{upper}_HEADERS"))
            .or_else(|| env("OTEL_EXPORTER_OTLP_HEADERS"))
            .unwrap_or_default();
        let pairs = text.split(',').filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let mut value = HeaderValue::try_from(decoded(value.trim())?).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name.trim()).ok()?, value))
        });
        pairs.collect()
    }

    /// For tonic; None for plain text.
    pub(super) fn grpc_tls(&self) -> Result<Option<ClientTlsConfig>, TargetError> {
        if !self.is_tls() {
            return Ok(None);
        }
        let anchors = match &self.certificate {
            Some(_) => vec![Certificate::from_pem(self.pem()?)],
            None => rustls_native_certs::load_native_certs()
                .certs
                .into_iter()
                .map(|der| Certificate::from_pem(pem_of(&der)))
                .collect(),
        };
        Ok(Some(ClientTlsConfig::new().ca_certificates(anchors)))
    }

    /// For hyper; unused by plain text.
    pub(super) fn http_tls(&self) -> Result<ClientConfig, TargetError> {
        let mut roots = RootCertStore::empty();
        if self.certificate.is_some() {
            let anchors = CertificateDer::pem_slice_iter(&self.pem()?)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| self.fault(&error))?;
            roots.add_parsable_certificates(anchors);
        } else if self.is_tls() {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| self.fault(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }

    pub(super) fn is_tls(&self) -> bool {
        self.endpoint.starts_with("https://")
    }

    pub(super) fn fault(&self, error: &dyn std::fmt::Display) -> TargetError {
        TargetError { signal: self.signal.as_str(), what: error.to_string() }
    }

    fn pem(&self) -> Result<Vec<u8>, TargetError> {
        let path = self.certificate.clone().unwrap_or_default();
        std::fs::read(&path).map_err(|error| self.fault(&format!("{}: {error}", path.display())))
    }
}

/// tonic takes certificates as PEM only.
fn pem_of(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// `%20` and its like; None if a sequence is cut short or the result is no UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            u8::try_from(digit(rest.next()?)? * 16 + digit(rest.next()?)?).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Env + 'a {
        move |name: &str| {
            pairs.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned())
        }
    }

    fn of(signal: Signal, base: Option<&str>, pairs: &[(&str, &str)]) -> Option<Target> {
        Target::of(signal, base, &env(pairs)).unwrap()
    }

    const BASE: Option<&str> = Some("http://collector:4317");

    #[test]
    fn a_signal_is_sent_only_where_somebody_asked_for_it() {
        assert!(of(Signal::Traces, None, &[]).is_none());
        assert!(of(Signal::Traces, BASE, &[]).is_some());
        let standard = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")];
        assert!(of(Signal::Logs, None, &standard).is_some());
        assert!(of(Signal::Logs, BASE, &[("OTEL_SDK_DISABLED", "True")]).is_none());
        assert!(of(Signal::Metrics, BASE, &[("OTEL_METRICS_EXPORTER", "prometheus")]).is_none());
        let both = [("OTEL_METRICS_EXPORTER", "prometheus, otlp")];
        assert!(of(Signal::Metrics, BASE, &both).is_some());
        assert!(of(Signal::Traces, BASE, &[("OTEL_METRICS_EXPORTER", "none")]).is_some());
    }

    #[test]
    fn a_signals_own_endpoint_is_called_as_it_stands_and_a_base_gets_the_path_of_http() {
        let own = [("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "https://logs/in")];
        assert_eq!(of(Signal::Logs, BASE, &own).unwrap().endpoint, "https://logs/in");
        assert_eq!(of(Signal::Traces, BASE, &own).unwrap().endpoint, "http://collector:4317");
        let http = [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
        let traces = of(Signal::Traces, Some("http://collector:4318/"), &http).unwrap();
        assert_eq!(traces.endpoint, "http://collector:4318/v1/traces");
        assert_eq!(traces.protocol, Protocol::HttpBinary);
    }

    #[test]
    fn the_variable_of_a_signal_wins_over_the_one_for_all() {
        let pairs = [
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "250"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ];
        let traces = of(Signal::Traces, BASE, &pairs).unwrap();
        assert_eq!(traces.timeout, Duration::from_millis(250));
        assert!(traces.gzip);
        assert_eq!(of(Signal::Logs, BASE, &pairs).unwrap().timeout, Duration::from_secs(1));
    }

    #[test]
    fn a_value_that_means_nothing_is_refused_with_its_variable() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
        ] {
            let error = Target::of(Signal::Traces, BASE, &env(&[(name, value)])).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(Target::of(Signal::Logs, Some("collector:4317"), &env(&[])).is_err());
    }

    #[test]
    fn headers_are_decoded_and_never_shown() {
        let pairs = [("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20abc, bad name=x,b=2")];
        let target = of(Signal::Metrics, BASE, &pairs).unwrap();
        let headers = target.headers(&env(&pairs));
        assert_eq!(headers["authorization"], "Basic abc");
        assert_eq!(headers["b"], "2");
        assert_eq!(headers.len(), 2);
        assert!(!format!("{headers:?}").contains("abc"));
    }
}
