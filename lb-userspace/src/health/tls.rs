//! TLS as a client that checks: the configuration from PEM files, and rustls' errors in an operator's words.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, InvalidMessage, RootCertStore,
    SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{
        CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
};

use super::watched::{FileError, Watched};
use crate::config::model::{Tls, Verify};

/// The client's side of TLS, read again when one of its files changes.
pub(super) fn watched_config(tls: &Tls) -> Watched<Arc<ClientConfig>> {
    let mut paths = Vec::new();
    if let Verify::Authority(path) = &tls.verify {
        paths.push(path.clone());
    }
    if let Some((chain, key)) = &tls.client_certificate {
        paths.extend([chain.clone(), key.clone()]);
    }
    let tls = tls.clone();
    Watched::new(paths, move || client_config(&tls).map(Arc::new))
}

/// The name to ask for and to verify.
pub(super) fn server_name(tls: &Tls, address: IpAddr) -> Result<ServerName<'static>, InvalidDnsNameError> {
    match &tls.server_name {
        Some(name) => ServerName::try_from(name.clone()),
        None => Ok(ServerName::from(address)),
    }
}

fn client_config(tls: &Tls) -> Result<ClientConfig, FileError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring has suites for every protocol version");
    let builder = match &tls.verify {
        Verify::No => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
        Verify::Authority(path) => builder.with_root_certificates(authorities(path)?),
    };
    let mut config = match &tls.client_certificate {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|e| pem_error(key, e))?;
            builder.with_client_auth_cert(certificates(chain)?, private).map_err(|e| FileError::new(key, e))?
        }
    };
    // HTTP/2 would bring pings and settings to a connection that carries one request at a time.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session skips the certificate, which is part of what is checked.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn authorities(path: &PathBuf) -> Result<RootCertStore, FileError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|e| FileError::new(path, e))?;
    }
    Ok(store)
}

/// The certificates of a PEM file; at least one.
fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let all: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|e| pem_error(path, e))?;
    if all.is_empty() {
        return Err(FileError::new(path, "it has no certificate"));
    }
    Ok(all)
}

fn pem_error(path: &Path, error: pem::Error) -> FileError {
    match error {
        pem::Error::Io(error) => FileError::new(path, error),
        pem::Error::NoItemsFound => FileError::new(path, "it has no private key"),
        error => FileError::new(path, error),
    }
}

/// Takes any certificate, but only from a peer that has its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What an operator should read of a failed handshake.
pub(super) fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => describe_certificate(error),
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the server requires a client certificate".into()
        }
        Error::AlertReceived(alert) => format!("the server refused with TLS alert {alert:?}"),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => "the port does not speak TLS".into(),
        error => error.to_string(),
    }
}

fn describe_certificate(error: &CertificateError) -> String {
    let seconds = |from: UnixTime, to: UnixTime| {
        humantime::format_duration(Duration::from_secs(to.as_secs().saturating_sub(from.as_secs())))
    };
    match error {
        CertificateError::UnknownIssuer => "certificate not signed by the configured authority".into(),
        // Authorities made by kubeadm are all called "kubernetes".
        CertificateError::BadSignature => {
            "signature not by the configured authority, but perhaps by one of the same name".into()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<_> = presented.iter().map(|name| subject_name(name)).collect();
            let names = if names.is_empty() { "no names".into() } else { names.join(", ") };
            format!("certificate not valid for name {}: it has {names}", expected.to_str())
        }
        CertificateError::ExpiredContext { time, not_after } => {
            format!("certificate expired {} ago", seconds(*not_after, *time))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("certificate valid only in {}", seconds(*time, *not_before))
        }
        error => format!("certificate not accepted: {error}"),
    }
}

/// As openssl prints it. rustls gives `DnsName("a.example")` and `IpAddress(10.0.0.1)`.
fn subject_name(presented: &str) -> String {
    let (kind, rest) = presented.split_once('(').unwrap_or(("", presented));
    let name = rest.trim_end_matches(')').trim_matches('"');
    match kind {
        "DnsName" => format!("DNS:{name}"),
        "IpAddress" => format!("IP:{name}"),
        _ => presented.to_owned(),
    }
}
