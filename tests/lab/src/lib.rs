//! The laboratory: three containers of the very root tree that the appliance ships, on one bridge, at native speed.
//!
//! | module | what it is for |
//! |---|---|
//! | [`lab`] | bring the laboratory up, use it, take it down |
//! | [`node`] | one container: boot, kill, freeze, run something inside |
//! | [`switch`] | the wire between them: cut, heal, link down |
//! | [`load`] | what clients see |
//! | [`bench`] | what moving or losing a node costs them |
//! | [`config_roll`] | that another configuration or version of a service costs them nothing |
//! | [`mixed`] | that nodes of two versions are one set |
//! | [`demo`] | the same to look at |
//!
//! ```no_run
//! use trilith_lab::lab::{Lab, Mode};
//! use trilith_lab::switch::Direction;
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::up(Mode::Trilith)?;
//! lab.switch.cut("a", Direction::Both)?;
//! lab.node("b")?.freeze()?;
//! lab.heal()?;
//! // Whoever brought the laboratory up takes it down, however this process ends.
//! # Ok(()) }
//! ```

pub mod bench;
mod cgroup;
pub mod command;
pub mod config_roll;
pub mod container;
pub mod demo;
pub mod forge;
pub mod lab;
pub mod load;
pub mod mixed;
pub mod netns;
pub mod node;
pub mod root;
pub mod set;
pub mod standing;
pub mod status;
pub mod switch;
pub mod wait;
