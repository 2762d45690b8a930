//! One signal's collector, as the exporters want it. The certificate and the headers are read
//! when the connection is set up.

use std::{path::PathBuf, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry_otlp::Protocol;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tonic::transport::{Certificate, ClientTlsConfig};

use super::Env;
use crate::{
    config::{Collector, Collectors, OtlpProtocol},
    telemetry::metrics::Signal,
};

/// Why a signal cannot be sent; never shows a header's value.
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
    /// None where the signal is not sent.
    pub(crate) fn of(signal: Signal, collectors: &Collectors) -> Option<Self> {
        let Collector { protocol, endpoint, timeout, gzip, certificate } = match signal {
            Signal::Traces => collectors.traces.clone()?,
            Signal::Metrics => collectors.metrics.clone()?,
            Signal::Logs => collectors.logs.clone()?,
        };
        let protocol = match protocol {
            OtlpProtocol::Grpc => Protocol::Grpc,
            OtlpProtocol::Http => Protocol::HttpBinary,
        };
        Some(Self { signal, protocol, endpoint, timeout, gzip, certificate })
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

    #[test]
    fn headers_are_decoded_and_never_shown() {
        let env = |name: &str| {
            let pairs = "authorization=Basic%20abc, bad name=x,b=2";
            (name == "OTEL_EXPORTER_OTLP_HEADERS").then(|| pairs.to_owned())
        };
        let collector = Collector {
            protocol: OtlpProtocol::Grpc,
            endpoint: "http://collector:4317".into(),
            timeout: Duration::from_secs(1),
            gzip: false,
            certificate: None,
        };
        let collectors = Collectors { metrics: Some(collector), ..Collectors::default() };
        let headers = Target::of(Signal::Metrics, &collectors).unwrap().headers(&env);
        assert_eq!(headers["authorization"], "Basic abc");
        assert_eq!(headers["b"], "2");
        assert_eq!(headers.len(), 2);
        assert!(!format!("{headers:?}").contains("abc"));
    }
}
