//! The few fields of an X.509 certificate that rustls does not give out: what the channel binding
//! of SCRAM hashes, the key, and the common name that libpq still accepts as a host name.
//!
//! The certificate is hostile until its chain is verified: a field that is not where RFC 5280 has it counts as absent.

use sha2::{Digest, Sha256, Sha384, Sha512};

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const VERSION: u8 = 0xA0;
const EXTENSIONS: u8 = 0xA3;

const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1D, 0x11];
/// 1.2.840.113549.1.1, RSA with PKCS #1 v1.5; the last part names the hash.
const RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01];
/// 1.2.840.10045.4.3, ECDSA with SHA-2; the last part names the hash.
const ECDSA: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03];

/// One value in DER: its tag, its content, and both with the length between them.
struct Value<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

/// Splits the first value off.
fn take<'a>(input: &mut &'a [u8]) -> Option<Value<'a>> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, header) = if first < 0x80 {
        (usize::from(first), 2)
    } else {
        let count = usize::from(first & 0x7F);
        let bytes = rest.get(..count).filter(|_| (1..=4).contains(&count))?;
        let length = bytes
            .iter()
            .fold(0, |length, byte| (length << 8) | usize::from(*byte));
        (length, 2 + count)
    };
    let whole = input.get(..header.checked_add(length)?)?;
    *input = input.get(whole.len()..)?;
    Some(Value {
        tag,
        content: whole.get(header..)?,
        whole,
    })
}

fn take_tagged<'a>(input: &mut &'a [u8], tag: u8) -> Option<Value<'a>> {
    take(input).filter(|value| value.tag == tag)
}

/// What walship reads of a certificate.
pub(super) struct Certificate<'a> {
    der: &'a [u8],
    signature_algorithm: &'a [u8],
    subject: &'a [u8],
    public_key: &'a [u8],
    extensions: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// Reads a certificate's outline.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let mut outer = take_tagged(&mut { der }, SEQUENCE)?.content;
        let mut body = take_tagged(&mut outer, SEQUENCE)?.content;
        let mut algorithm = take_tagged(&mut outer, SEQUENCE)?.content;
        if body.first() == Some(&VERSION) {
            take(&mut body)?;
        }
        let _serial = take(&mut body)?;
        let _algorithm = take(&mut body)?;
        let _issuer = take(&mut body)?;
        let _validity = take(&mut body)?;
        let subject = take_tagged(&mut body, SEQUENCE)?.content;
        let public_key = take_tagged(&mut body, SEQUENCE)?.whole;
        let mut extensions: &[u8] = &[];
        while let Some(field) = take(&mut body) {
            if field.tag == EXTENSIONS {
                extensions = take_tagged(&mut { field.content }, SEQUENCE)?.content;
            }
        }
        Some(Self {
            der,
            signature_algorithm: take_tagged(&mut algorithm, OBJECT_IDENTIFIER)?.content,
            subject,
            public_key,
            extensions,
        })
    }

    /// The hash for the `tls-server-end-point` channel binding (RFC 5929, section 4.1): of the whole certificate, with
    /// the signature's hash function, or SHA-256 instead of MD5 and SHA-1. None for signatures that name no such
    /// function.
    pub(super) fn end_point_hash(&self) -> Option<Vec<u8>> {
        let (last, family) = self.signature_algorithm.split_last()?;
        match (family, last) {
            (RSA, 4 | 5 | 11) | (ECDSA, 2) => Some(Sha256::digest(self.der).to_vec()),
            (RSA, 12) | (ECDSA, 3) => Some(Sha384::digest(self.der).to_vec()),
            (RSA, 13) | (ECDSA, 4) => Some(Sha512::digest(self.der).to_vec()),
            _ => None,
        }
    }

    /// The public key with its algorithm (`SubjectPublicKeyInfo`).
    pub(super) fn public_key(&self) -> &'a [u8] {
        self.public_key
    }

    /// The subject's first common name, unless the certificate has alternative names, which then
    /// count alone.
    pub(super) fn common_name(&self) -> Option<&'a str> {
        if self.has_extension(SUBJECT_ALTERNATIVE_NAME)? {
            return None;
        }
        let mut subject = self.subject;
        while let Some(mut set) = take(&mut subject).map(|set| set.content) {
            while let Some(mut pair) = take_tagged(&mut set, SEQUENCE).map(|pair| pair.content) {
                if take_tagged(&mut pair, OBJECT_IDENTIFIER)?.content == COMMON_NAME {
                    let name = std::str::from_utf8(take(&mut pair)?.content).ok()?;
                    return Some(name).filter(|name| !name.is_empty() && !name.contains('\0'));
                }
            }
        }
        None
    }

    /// Whether there is such an extension; none if the extensions cannot be read.
    fn has_extension(&self, identifier: &[u8]) -> Option<bool> {
        let mut extensions = self.extensions;
        while !extensions.is_empty() {
            let mut extension = take_tagged(&mut extensions, SEQUENCE)?.content;
            if take_tagged(&mut extension, OBJECT_IDENTIFIER)?.content == identifier {
                return Some(true);
            }
        }
        Some(false)
    }
}

/// Whether a common name stands for a host, as libpq compares them: without case, and with one
/// wildcard for the whole first label (`wildcard_certificate_match`, `fe-secure-common.c`).
pub(super) fn name_matches(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let suffix = pattern.strip_prefix('*').filter(|suffix| suffix.starts_with('.'));
    let after_first_label = host.find('.').and_then(|dot| host.split_at_checked(dot));
    match (suffix, after_first_label) {
        (Some(suffix), Some((label, rest))) => {
            suffix.len() > 1
                && !label.is_empty()
                && host.parse::<std::net::IpAddr>().is_err()
                && suffix.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    fn certificate(arguments: &[&str]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let output = std::process::Command::new("openssl")
            .args([
                "req", "-x509", "-nodes", "-days", "1", "-out", "cert.pem", "-keyout", "key.pem",
            ])
            .args(arguments)
            .current_dir(&directory)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        CertificateDer::from_pem_file(directory.path().join("cert.pem"))
            .unwrap()
            .to_vec()
    }

    const EC: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];

    #[test]
    fn the_common_name_counts_only_without_alternative_names() {
        let plain = certificate(&[&EC[..], &["-subj", "/O=x/CN=db.example"]].concat());
        assert_eq!(
            Certificate::parse(&plain).unwrap().common_name(),
            Some("db.example")
        );
        let named = ["-subj", "/CN=db.example", "-addext", "subjectAltName=DNS:other"];
        let named = certificate(&[&EC[..], &named].concat());
        assert_eq!(Certificate::parse(&named).unwrap().common_name(), None);
    }

    #[test]
    fn the_end_points_hash_is_that_of_the_signature() {
        let subject = ["-subj", "/CN=x"];
        for (hash, length) in [("-sha1", 32), ("-sha256", 32), ("-sha384", 48), ("-sha512", 64)] {
            let rsa = certificate(&[&["-newkey", "rsa:2048", hash][..], &subject].concat());
            let hashed = Certificate::parse(&rsa).unwrap().end_point_hash().unwrap();
            assert_eq!(hashed.len(), length, "{hash}");
        }
        let ec = certificate(&[&EC[..], &["-sha384"], &subject].concat());
        let hashed = Certificate::parse(&ec).unwrap().end_point_hash().unwrap();
        assert_eq!(hashed, Sha384::digest(&ec).to_vec());
        let edwards = certificate(&[&["-newkey", "ed25519"][..], &subject].concat());
        assert_eq!(Certificate::parse(&edwards).unwrap().end_point_hash(), None);
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        assert!(name_matches("*.example", "DB.example") && name_matches("db", "DB"));
        for (pattern, host) in [
            ("*.example", "a.b.example"),
            ("*.example", "example"),
            ("*", "db"),
            ("*.", "db."),
            ("d*.example", "db.example"),
            ("*.0.0.1", "127.0.0.1"),
            ("*.example", ".example"),
        ] {
            assert!(!name_matches(pattern, host), "{pattern} {host}");
        }
    }

    #[test]
    fn a_damaged_certificate_never_panics() {
        let good = certificate(&[&EC[..], &["-subj", "/CN=x"]].concat());
        for at in 0..good.len() {
            for value in [0, 0x30, 0x7F, 0x80, 0x84, 0xFF] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = Certificate::parse(&bad).map(|c| (c.common_name(), c.end_point_hash()));
            }
            let _ = Certificate::parse(&good[..at]);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let _ = Certificate::parse(&bytes).map(|c| c.common_name().is_some());
        }
    }
}
