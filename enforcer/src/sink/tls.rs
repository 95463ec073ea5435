//! Whom a sink trusts.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// The authorities in a file, or those that the host trusts.
pub fn config(authority: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{authority:?}: {error}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The certificates of those authorities.
pub fn certificates(authority: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, String> {
    let Some(path) = authority else {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            return Err("this host trusts no authority; name one with `#ca=FILE`".to_owned());
        }
        return Ok(found.certs);
    };
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let pem = std::fs::read(path).map_err(|error| failed(&error))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| failed(&error))?;
    if found.is_empty() {
        return Err(failed(&"no certificate in PEM"));
    }
    Ok(found)
}
