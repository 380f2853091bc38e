//! What single values mean: names, ports, durations, paths.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::fault::{Wrong, quoted};
use super::table::type_name;
use super::{FRONT_PORT, Health, Lone, Mode, SSH_PORT};

/// Whether this could be the name of a node, a VIP or a service: a DNS label in lower case.
pub fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len()) && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// A DNS label (RFC 1123, section 2.1), in lower case so that names never differ by case alone.
pub(super) fn label(value: &DeValue<'_>) -> Result<String, Wrong> {
    const RIGHT: &str = "use 1 to 63 lower-case letters, digits and inner hyphens, such as \"edge-1\"";
    let text = string(value, "a name", RIGHT)?;
    if is_label(text) {
        Ok(text.to_owned())
    } else {
        Err(Wrong::new(format!("{} is no DNS label", quoted(text)), RIGHT))
    }
}

/// A port of TCP or UDP.
pub(super) fn port(value: &DeValue<'_>) -> Result<u16, Wrong> {
    const RIGHT: &str = "write a number from 1 to 65535 without quotes";
    let DeValue::Integer(number) = value else {
        return Err(Wrong::new(format!("is {}, not a port", type_name(value)), RIGHT));
    };
    match u16::from_str_radix(number.as_str(), number.radix()) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Wrong::new(format!("{} is no port", bounded(&number.to_string())), RIGHT)),
    }
}

/// A TCP port of VIPs that a service may have.
pub(super) fn service_port(value: &DeValue<'_>) -> Result<u16, Wrong> {
    match backend_port(value)? {
        SSH_PORT => Err(Wrong::new(
            format!("{SSH_PORT} is the port of the node's own SSH server, on every address"),
            "choose any other port",
        )),
        port => Ok(port),
    }
}

/// A TCP port of nodes at which a service may be.
pub(super) fn backend_port(value: &DeValue<'_>) -> Result<u16, Wrong> {
    match port(value)? {
        FRONT_PORT => Err(Wrong::new(
            format!("{FRONT_PORT} is the port by which the supervisor watches HAProxy"),
            "choose any other port",
        )),
        port => Ok(port),
    }
}

/// A duration within bounds, such as `"250ms"`.
pub(super) fn duration(value: &DeValue<'_>, bounds: RangeInclusive<Duration>) -> Result<Duration, Wrong> {
    let right = format!(
        "write {} to {} as a whole number with a unit (ms, s, m, h)",
        quoted(&in_words(*bounds.start())),
        quoted(&in_words(*bounds.end()))
    );
    let text = string(value, "a duration", &right)?;
    let Some(duration) = read_duration(text) else {
        return Err(Wrong::new(format!("{} is no duration", quoted(text)), right));
    };
    if duration < *bounds.start() {
        return Err(Wrong::new(format!("{} is too short", quoted(text)), right));
    }
    if duration > *bounds.end() {
        return Err(Wrong::new(format!("{} is too long", quoted(text)), right));
    }
    Ok(duration)
}

/// A duration within bounds, or `"never"`.
pub(super) fn duration_or_never(
    value: &DeValue<'_>,
    bounds: RangeInclusive<Duration>,
) -> Result<Option<Duration>, Wrong> {
    if let DeValue::String(text) = value
        && text == "never"
    {
        return Ok(None);
    }
    match duration(value, bounds) {
        Ok(duration) => Ok(Some(duration)),
        Err(Wrong { wrong, right }) => Err(Wrong::new(wrong, format!("{right}, or \"never\""))),
    }
}

/// A duration as it is written in a document: the largest unit that leaves a whole number.
pub(super) fn in_words(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".to_owned(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1_000) => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

/// `set.lone`
pub(super) fn lone(value: &DeValue<'_>) -> Result<Lone, Wrong> {
    const RIGHT: &str = "write \"serve\" (a lone survivor keeps the VIP) or \"release\" (it gives it up)";
    match string(value, "a policy", RIGHT)? {
        "serve" => Ok(Lone::Serve),
        "release" => Ok(Lone::Release),
        other => Err(Wrong::new(format!("{} is no policy", quoted(other)), RIGHT)),
    }
}

/// `service.mode`
pub(super) fn mode(value: &DeValue<'_>) -> Result<Mode, Wrong> {
    const RIGHT: &str = "write \"http\" or \"tcp\"";
    match string(value, "a mode", RIGHT)? {
        "tcp" => Ok(Mode::Tcp),
        "http" => Ok(Mode::Http),
        other => Err(Wrong::new(format!("{} is no mode", quoted(other)), RIGHT)),
    }
}

/// `service.health`
///
/// The path is kept to the characters of a URL (RFC 3986) that need no quoting in HAProxy's configuration.
pub(super) fn health(value: &DeValue<'_>) -> Result<Health, Wrong> {
    const RIGHT: &str = "write \"connect\", or \"GET\" and an absolute path, such as \"GET /healthz\"";
    let text = string(value, "a health check", RIGHT)?;
    if text == "connect" {
        return Ok(Health::Connect);
    }
    let Some(path) = text.strip_prefix("GET ") else {
        return Err(Wrong::new(format!("{} is no health check", quoted(text)), RIGHT));
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~!&()*+,;=:@%?".contains(c);
    if !path.starts_with('/') || path.len() > 256 || !path.chars().all(plain) {
        let right = "begin it with / and keep to 256 letters, digits and -._~!&()*+,;=:@%?/";
        return Err(Wrong::new(format!("{} is no path to ask for", quoted(path)), right));
    }
    Ok(Health::Get { path: path.to_owned() })
}

/// A systemd service unit (systemd.unit(5)).
pub(super) fn unit(value: &DeValue<'_>) -> Result<String, Wrong> {
    const RIGHT: &str = "write the full name of a service unit, such as \"portal.service\"";
    let text = string(value, "a unit", RIGHT)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let Some(stem) = text.strip_suffix(".service") else {
        return Err(Wrong::new(format!("{} is no service unit", quoted(text)), RIGHT));
    };
    if stem.is_empty() || text.len() > 255 || !text.chars().all(plain) || stem.starts_with('@') {
        return Err(Wrong::new(format!("{} is no service unit", quoted(text)), RIGHT));
    }
    if stem.ends_with('@') {
        return Err(Wrong::new(
            format!("{} is a template", quoted(text)),
            "name an instance of it, such as \"portal@1.service\"",
        ));
    }
    if matches!(stem, "haproxy" | "trilith") {
        return Err(Wrong::new(
            format!("{} is part of the appliance", quoted(text)),
            "name the unit of the service itself",
        ));
    }
    Ok(text.to_owned())
}

/// An absolute path, in characters that need no quoting anywhere.
pub(super) fn path(value: &DeValue<'_>) -> Result<String, Wrong> {
    const RIGHT: &str = "write it from / on to the file's own name";
    let text = string(value, "a path", RIGHT)?;
    if !text.starts_with('/') || text.ends_with('/') {
        return Err(Wrong::new(format!("{} is no absolute path of a file", quoted(text)), RIGHT));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@=,:~".contains(c);
    if text.len() > 1024 || !text.chars().all(plain) || text.split('/').any(|part| part == "..") {
        let right = "keep to 1024 letters, digits and /._-+@=,:~ without \"..\"";
        return Err(Wrong::new(format!("{} is no plain path", quoted(text)), right));
    }
    Ok(text.to_owned())
}

/// The name of a network interface, as the kernel allows it (`dev_valid_name`), less what would need quoting.
pub(super) fn interface(value: &DeValue<'_>) -> Result<String, Wrong> {
    const RIGHT: &str = "write its name, such as \"eth0\" (see: ip link)";
    let text = string(value, "an interface", RIGHT)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !(1..=15).contains(&text.len()) || !text.chars().all(plain) || matches!(text, "." | "..") {
        return Err(Wrong::new(format!("{} is no name of an interface", quoted(text)), RIGHT));
    }
    if text == "lo" {
        let wrong = "\"lo\" carries every VIP on every node already";
        return Err(Wrong::new(wrong, "name the interface on which the owner answers for the VIP, such as \"eth0\""));
    }
    Ok(text.to_owned())
}

/// A failure domain: words for humans.
pub(super) fn zone(value: &DeValue<'_>) -> Result<String, Wrong> {
    const RIGHT: &str = "write 1 to 64 printable characters, such as \"host-1\"";
    let text = string(value, "a zone", RIGHT)?;
    if text.trim().is_empty() || text.chars().count() > 64 || text.chars().any(char::is_control) {
        return Err(Wrong::new(format!("{} is no name of a zone", quoted(text)), RIGHT));
    }
    Ok(text.to_owned())
}

/// Any string; whether it names something is seen later.
pub(super) fn reference(value: &DeValue<'_>) -> Result<String, Wrong> {
    string(value, "a name", "write it in quotes").map(str::to_owned)
}

/// One name, or a list of names that is not empty.
pub(super) fn references(value: &DeValue<'_>) -> Result<Vec<Spanned<String>>, Wrong> {
    const RIGHT: &str = "write a name or a list of names, such as \"public\" or [\"public\", \"public6\"]";
    match value {
        DeValue::String(name) => Ok(vec![Spanned::new(0..0, name.to_string())]),
        DeValue::Array(values) if values.is_empty() => Err(Wrong::new("is empty", RIGHT)),
        DeValue::Array(values) => values
            .iter()
            .map(|value| match value.get_ref() {
                DeValue::String(name) => Ok(Spanned::new(value.span(), name.to_string())),
                other => Err(Wrong::new(format!("holds {}, not only names in quotes", type_name(other)), RIGHT)),
            })
            .collect(),
        other => Err(Wrong::new(format!("is {}, not a name in quotes", type_name(other)), RIGHT)),
    }
}

/// A value that must be a string.
pub(super) fn string<'v>(value: &'v DeValue<'_>, what: &str, right: &str) -> Result<&'v str, Wrong> {
    match value {
        DeValue::String(text) => Ok(text),
        other => Err(Wrong::new(format!("is {}, not {what} in quotes", type_name(other)), right)),
    }
}

/// A duration as it is written in a document: a whole number with its unit, such as `250ms`.
pub fn read_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms).map(Duration::from_millis)
}

fn bounded(text: &str) -> String {
    text.chars().take(24).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_they_are_written() {
        for text in ["1ms", "250ms", "5s", "90s", "10m", "24h", "0s"] {
            assert_eq!(read_duration(text).map(in_words).as_deref(), Some(if text == "90s" { "90s" } else { text }));
        }
        for text in
            ["", "5", "s", "-1s", "+1s", "1.5s", "1 s", "1d", "99999999999999999999s", "9999999999999999999h", "５s"]
        {
            assert_eq!(read_duration(text), None, "{text}");
        }
    }
}
