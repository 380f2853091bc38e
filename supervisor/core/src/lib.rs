//! The pure core of the supervisor: no IO, no clock, no randomness of its own.
//!
//! Drive it so: make a [`node::Node`], then hand every [`event::Event`] to [`node::Node::step`] with the time at which it is
//! handled, carry out the [`command::Command`]s that come back, and call again with [`event::Event::Timer`] at
//! [`node::Node::deadline`]. The same events at the same times give the same commands.

/// Version of this code: major, minor, patch.
pub const VERSION: [u16; 3] = [0, 1, 0];

pub mod command;
pub mod config;
pub mod decision;
pub mod event;
pub mod health;
pub mod lease;
pub mod node;
pub mod peer;
pub mod plant;
pub mod rollout;
pub mod set;
pub mod slots;
pub mod status;
pub mod time;
pub mod vip;
pub mod wire;
