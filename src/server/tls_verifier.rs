//! How the server's certificate is judged, for each `sslmode`.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::x509::{Certificate, name_matches};

/// The roots that are trusted.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) roots: RootCertStore,
    /// The same, whole: a server's own self-signed certificate may be among them.
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

/// Judges a server's certificate: not at all, by its chain, or by chain and name.
#[derive(Debug)]
pub(super) struct Verifier {
    /// The roots that the chain must lead to; none to accept every certificate.
    pub(super) trust: Option<Trust>,
    /// The name the certificate must have; none to accept every name.
    pub(super) host: Option<String>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn verify_chain(
        &self,
        trust: &Trust,
        end_entity: &CertificateDer<'_>,
        parsed: &ParsedCertificate<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let algorithms = self.algorithms.all;
        match verify_server_cert_signed_by_trust_anchor(parsed, &trust.roots, intermediates, now, algorithms)
        {
            // `openssl req -x509` makes a self-signed server certificate an authority as well, which
            // webpki refuses after it has checked the dates. Trusting that very certificate is
            // what the user meant by putting it into the root file.
            Err(Error::InvalidCertificate(CertificateError::Other(_)))
                if trust.certificates.iter().any(|trusted| **trusted == **end_entity) =>
            {
                Ok(())
            }
            result => result,
        }
    }
}

/// The name by which rustls looks for alternative names; a host that is neither a name nor an
/// address finds none.
pub(super) fn server_name(host: &str) -> ServerName<'static> {
    ServerName::try_from(host.to_owned())
        .unwrap_or_else(|_| ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()))
}

fn verify_name(
    end_entity: &CertificateDer<'_>,
    parsed: &ParsedCertificate<'_>,
    host: &str,
) -> Result<(), Error> {
    verify_server_name(parsed, &server_name(host)).or_else(|error| {
        let name = Certificate::parse(end_entity).and_then(|certificate| certificate.common_name());
        if name.is_some_and(|name| name_matches(name, host)) {
            Ok(())
        } else {
            Err(error)
        }
    })
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(trust) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        self.verify_chain(trust, end_entity, &parsed, intermediates, now)?;
        if let Some(host) = &self.host {
            verify_name(end_entity, &parsed, host)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // webpki reads no X.509 version 1, which older openssl tools make; its key can be read here.
        match Certificate::parse(certificate) {
            Some(outline) if self.trust.is_none() && ParsedCertificate::try_from(certificate).is_err() => {
                let key = SubjectPublicKeyInfoDer::from(outline.public_key());
                verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
            }
            _ => verify_tls13_signature(message, certificate, signature, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What to tell the user about a handshake that failed.
pub(super) fn explain(error: &std::io::Error) -> String {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return format!("{error}; check that the server's TLS settings work");
    };
    let next = match tls {
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "no authority in sslrootcert signed the server's certificate; set sslrootcert to the file of the one that did"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "the server's certificate is for another name; connect by a name in it, or use sslmode=verify-ca"
        }
        Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "renew the server's certificate, or correct this machine's clock",
        Error::InvalidCertificate(_) => {
            "reissue the server's certificate as X.509 version 3 with a subjectAltName, not as an authority"
        }
        Error::AlertReceived(_) => {
            "the server refused; it may ask for a client certificate: set sslcert and sslkey"
        }
        _ => "check that the server's ssl_min_protocol_version allows TLS 1.2 or 1.3",
    };
    format!("{tls}; {next}")
}
