//! Bundles: what a patch comes in, how it moves, and how it gets onto the disk.
//!
//! ```text
//!   bundle (a tar)                 Store                       slot
//!   manifest.toml      ──send──▶   bundles/1.5.0/…   ──write──▶ root-b, verity-b,
//!   manifest.toml.minisig          (only blocks that           EFI/Linux/trilith_1.5.0+3.efi
//!   root.verity, uki.blocks         are not here yet)
//!   trilith.efi, root.erofs
//! ```
//!
//! Everything that comes in is hostile until it has been checked: [`manifest::Verified`] is the manifest that a trusted key has
//! signed, and every other byte fits a hash in it. Refusals are one closed enum, [`Refusal`].

pub mod failure;
pub mod inspect;
pub mod keys;
pub mod make;
pub mod manifest;
pub mod refusal;
pub mod slot;
pub mod source;
pub mod store;
pub mod tar;
#[cfg(test)]
mod testing;
pub mod text;
pub mod transfer;
pub mod tree;
pub mod uki;
pub mod utc;
pub mod verity;

pub use failure::Failure;
pub use keys::Keys;
pub use manifest::{Context, Kind, Manifest, Room, Verified};
pub use refusal::{REFUSAL_CODES, Refusal};
pub use source::Source;
pub use store::Store;

/// A SHA-256, of whatever.
pub use trilith_core::slots::RootHash as Hash;

/// Bytes of a block, of roots, hash trees and everything else that is moved in blocks.
pub const BLOCK: usize = 4096;
