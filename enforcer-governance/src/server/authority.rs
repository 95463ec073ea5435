//! The certificates that server and nodes know each other by.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Error;
use crate::files;

/// How long a node's certificate is good; it is renewed at half of that. Longer than a server may be away.
const NODE_LIFE: SignedDuration = SignedDuration::from_hours(30 * 24);
const SERVER_LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(20 * 365 * 24);
/// For clocks that are late.
const EARLIER: SignedDuration = SignedDuration::from_hours(1);

/// Signs certificates.
pub struct Authority {
    /// Its own, PEM.
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

fn failed(what: &'static str) -> impl FnOnce(rcgen::Error) -> Error {
    move |error| Error::Certificate(format!("{what}: {error}"))
}

fn good_for(params: &mut CertificateParams, life: SignedDuration) -> Result<(), Error> {
    let moment = |at: Timestamp| {
        let at = at.to_zoned(jiff::tz::TimeZone::UTC);
        rcgen::date_time_ymd(at.year().into(), at.month() as u8, at.day() as u8)
    };
    let now = Timestamp::now();
    // Whole days: one more at the end.
    params.not_before = moment(now - EARLIER);
    params.not_after = moment(now + life + SignedDuration::from_hours(24));
    Ok(())
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

impl Authority {
    /// The one in the directory; a new one if there is none.
    pub fn load_or_make(directory: &Path) -> Result<Self, Error> {
        let (key, certificate) = (directory.join("ca.key"), directory.join("ca.pem"));
        let read = |path: &Path| {
            let bytes = files::read(path).map_err(Error::io(path))?;
            Ok::<_, Error>(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        };
        if let (Some(key), Some(certificate)) = (read(&key)?, read(&certificate)?) {
            let key = KeyPair::from_pem(&key).map_err(failed("the authority's key"))?;
            let issuer = Issuer::from_ca_cert_pem(&certificate, key)
                .map_err(failed("the authority's certificate"))?;
            return Ok(Self {
                certificate,
                issuer,
            });
        }
        let pair = KeyPair::generate().map_err(failed("a key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("enforcer governance");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        good_for(&mut params, AUTHORITY_LIFE)?;
        let made = params.self_signed(&pair).map_err(failed("the authority"))?;
        files::replace(&key, pair.serialize_pem().as_bytes()).map_err(Error::io(&key))?;
        files::replace(&certificate, made.pem().as_bytes()).map_err(Error::io(&certificate))?;
        Self::load_or_make(directory)
    }

    /// A certificate and its key, PEM, for the server under these names and addresses.
    pub fn server(&self, names: &[String]) -> Result<(String, String), Error> {
        let key = KeyPair::generate().map_err(failed("a key"))?;
        let mut params = CertificateParams::new(names).map_err(failed("the server's names"))?;
        params.distinguished_name = named("enforcer governance server");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        good_for(&mut params, SERVER_LIFE)?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(failed("the server's certificate"))?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// A certificate, PEM, for the key of a request. Nothing else of the request counts.
    pub fn node(&self, name: &str, request: &str) -> Result<String, Error> {
        let mut request = CertificateSigningRequestParams::from_pem(request)
            .map_err(failed("the certificate request"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        good_for(&mut params, NODE_LIFE)?;
        request.params = params;
        let certificate = request
            .signed_by(&self.issuer)
            .map_err(failed("the node's certificate"))?;
        Ok(certificate.pem())
    }
}

/// The node that a certificate is for.
pub fn node_of(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}
