//! Who is who: the nodes' keys, derived from the set secret.
//!
//! Each node has an Ed25519 key of its own, derived (HKDF-SHA256, RFC 5869) from the set secret, the set's name and the node's name.
//! Whoever holds the secret knows the public keys of all nodes, so nothing has to be issued, sent around or stored, and three imports
//! with the same secret trust each other at once.
//!
//! TLS 1.3 carries them as raw public keys (RFC 7250) in both directions: a connection to node b is one to the holder of b's key.
//!
//! The alternative, certificates issued by an authority derived from the secret, proves the same to the same verifiers, and adds
//! names, serial numbers and validity periods, which then must be kept from doing harm: an appliance that boots with its clock
//! in 1970 or 2100 must not lose its set. Here no clock is ever asked, neither for keys nor for session tickets, which are
//! switched off. The price: the peer port shows no certificate to tools that want one.

use std::fmt;
use std::sync::Arc;

use hkdf::Hkdf;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, ServerConfig,
    SignatureScheme,
};
use sha2::Sha256;
use trilith_core::config::{NodeId, Settings};
use zeroize::Zeroizing;

use super::Alpn;

/// The own key, and the public keys of all nodes.
pub struct Keys {
    me: NodeId,
    own: Arc<CertifiedKey>,
    /// By place in the document.
    nodes: Arc<[SubjectPublicKeyInfoDer<'static>]>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys of {:?}", self.me)
    }
}

impl Keys {
    /// The keys of all nodes of the set.
    pub fn new(secret: &[u8], settings: &Settings, me: NodeId) -> Keys {
        let extracted = Hkdf::<Sha256>::new(Some(SALT), secret);
        let signers: Vec<_> =
            settings.nodes.iter().map(|node| signer(&extracted, &settings.set.name, &node.name)).collect();
        let public = |signer: &Arc<dyn SigningKey>| {
            signer.public_key().expect("an Ed25519 key knows its public half").into_owned()
        };
        let nodes: Arc<[_]> = signers.iter().map(public).collect();
        let place = usize::from(me.0);
        let own = CertificateDer::from(nodes[place].as_ref().to_vec());
        let own = Arc::new(CertifiedKey::new(vec![own], signers[place].clone()));
        Keys { me, own, nodes, provider: Arc::new(ring::default_provider()) }
    }

    /// For connections that peers make to this node.
    pub fn server(&self) -> ServerConfig {
        let verifier = Arc::new(KnownPeer { me: self.me, nodes: self.nodes.clone(), schemes: self.schemes() });
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("ring knows TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.own.clone())));
        config.alpn_protocols = Alpn::ALL.map(|alpn| alpn.name().to_vec()).to_vec();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config
    }

    /// For a connection to `node`, and to nobody else.
    pub fn client(&self, node: NodeId, alpn: Alpn) -> ClientConfig {
        let expected = self.nodes[usize::from(node.0)].clone();
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("ring knows TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ThatPeer { expected, schemes: self.schemes() }))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.own.clone())));
        config.alpn_protocols = vec![alpn.name().to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config
    }

    /// Whose key this is.
    pub fn holder(&self, key: &[u8]) -> Option<NodeId> {
        holder(&self.nodes, key)
    }

    fn schemes(&self) -> WebPkiSupportedAlgorithms {
        self.provider.signature_verification_algorithms
    }
}

fn holder(nodes: &[SubjectPublicKeyInfoDer<'_>], key: &[u8]) -> Option<NodeId> {
    nodes.iter().position(|known| known.as_ref() == key).map(|place| NodeId(place as u8))
}

/// The key of one node. All inputs but the last are of fixed or written length, so no two sets of them run together.
fn signer(extracted: &Hkdf<Sha256>, set: &str, node: &str) -> Arc<dyn SigningKey> {
    let mut pkcs8 = Zeroizing::new([0; 48]);
    pkcs8[..16].copy_from_slice(&PKCS8_ED25519);
    let info = [&[set.len() as u8][..], set.as_bytes(), node.as_bytes()];
    extracted.expand_multi_info(&info, &mut pkcs8[16..]).expect("32 bytes are one block of SHA-256");
    ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&pkcs8[..])).expect("any 32 bytes are an Ed25519 key")
}

/// Accepts one node's key.
#[derive(Debug)]
struct ThatPeer {
    expected: SubjectPublicKeyInfoDer<'static>,
    schemes: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ThatPeer {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match key.as_ref() == self.expected.as_ref() {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Accepts the key of any other node.
#[derive(Debug)]
struct KnownPeer {
    me: NodeId,
    nodes: Arc<[SubjectPublicKeyInfoDer<'static>]>,
    schemes: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for KnownPeer {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match holder(&self.nodes, key) {
            Some(node) if node != self.me => Ok(ClientCertVerified::assertion()),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

const SALT: &[u8] = b"trilith peer tls";
/// What stands before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410, section 7).
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
