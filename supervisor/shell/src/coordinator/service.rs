//! Another version of one service on this node: choose it, start it anew, and ask this node's own HAProxy whether it answers.
//!
//! The node is drained meanwhile and comes back into service only with a service that answers: a version that does not start, or
//! answers that it is ill, is left here and at once, before any client has met it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tracing::warn;
use trilith_core::config::Settings;
use trilith_core::set::Version;

use super::record::Record;
use super::sight::status;
use crate::{service, systemd};

/// What is to be done for one service.
#[derive(Clone, Debug)]
pub struct Order {
    /// The service.
    pub name: String,
    /// The version, `None` for the system's own.
    pub to: Option<Version>,
    /// The version that runs.
    pub from: Option<Version>,
    /// The unit that it is.
    pub unit: String,
    /// All services of that unit.
    pub services: BTreeSet<String>,
    /// This node.
    pub node: String,
}

impl Order {
    /// An order for a service of the document.
    ///
    /// # Errors
    /// The document has no such service, or names no unit for it.
    pub fn new(
        settings: &Settings,
        node: &str,
        name: &str,
        from: Option<Version>,
        to: Option<Version>,
    ) -> Result<Order, String> {
        let service = settings.services.iter().find(|service| service.name == name);
        let service = service.ok_or_else(|| format!("the configuration has no service {name}"))?;
        let unit = service.unit.clone().ok_or_else(|| format!("service {name} has no unit in the configuration"))?;
        let same = settings.services.iter().filter(|service| service.unit.as_ref() == Some(&unit));
        let services = same.map(|service| service.name.clone()).collect();
        Ok(Order { name: name.to_owned(), to, from, unit, services, node: node.to_owned() })
    }
}

/// Puts that version in force, or, when it does not answer, the one of before.
///
/// # Errors
/// Why it does not run: one line. The one of before does, unless the line says otherwise.
pub async fn switch(order: Order) -> Result<(), String> {
    let Err(why) = put(&order, order.to).await else { return Ok(()) };
    warn!("{why}; the version before it comes back");
    match put(&order, order.from).await {
        Ok(()) => Err(why),
        Err(again) => Err(format!("{why}; and the version before it does not come back: {again}")),
    }
}

/// After a switch that was cut off: what this node remembers to run is chosen again, and started.
pub async fn mend(record: &Record, settings: &Settings, node: &str) {
    for service in settings.services.iter().filter(|service| service.unit.is_some()) {
        let runs = record.services.get(&service.name).copied();
        let mended = match service::chosen(&service.name) {
            Ok(chosen) if chosen == runs => continue,
            Ok(chosen) => match Order::new(settings, node, &service.name, chosen, runs) {
                Ok(order) => start(&order, runs).await,
                Err(why) => Err(why),
            },
            Err(error) => Err(format!("{error:#}")),
        };
        mended.unwrap_or_else(|why| warn!("service {}: {why}", service.name));
    }
}

async fn put(order: &Order, version: Option<Version>) -> Result<(), String> {
    start(order, version).await?;
    answers(order, version).await
}

async fn start(order: &Order, version: Option<Version>) -> Result<(), String> {
    service::choose(&order.name, version).map_err(|error| format!("{error:#}"))?;
    systemd::run_once(&format!("trilith-service@{}.service", order.name), UNPACKING).await?;
    systemd::start_anew(&order.unit).await
}

/// Waits until this node's HAProxy has found it well for long enough.
async fn answers(order: &Order, version: Option<Version>) -> Result<(), String> {
    let begun = Instant::now();
    let mut well = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let ill = match status().await {
            Some(status) => super::sight::silent(&status, &order.node, |name| order.services.contains(name)),
            None => Some("the supervisor does not tell how it is".to_owned()),
        };
        match ill {
            None if well.get_or_insert_with(Instant::now).elapsed() >= WELL => return Ok(()),
            None => {}
            Some(_) if begun.elapsed() < ANSWERS => well = None,
            Some(why) => {
                let version = version.map_or("the system's version".to_owned(), |version| version.to_string());
                return Err(format!("{version} of {}: {why}", order.name));
            }
        }
    }
}

/// How often the world is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// An image is read, checked and unpacked within so long.
const UNPACKING: Duration = Duration::from_secs(60);
/// A service must answer without a break for so long: longer than all HAProxies take to find one that does not.
const WELL: Duration = Duration::from_secs(5);
/// It may take so long to begin to answer.
const ANSWERS: Duration = Duration::from_secs(20);
