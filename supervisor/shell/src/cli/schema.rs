//! The promise of `trilith status --json`: what is printed is what `docs/status.schema.json` says, no more and no less.

use serde_json::{Map, Value, json};
use trilith_core::status::Status;

use super::testing::full;

#[test]
fn a_full_status_is_what_the_schema_says() {
    let mut status = full();
    status.haproxy_problem = Some("HAProxy refuses its configuration".to_owned());
    status.relay.tunnels.push("b".to_owned());
    assert_eq!(faults(&serde_json::to_value(status).unwrap()), Vec::<String>::new());
}

#[test]
fn an_empty_status_is_what_the_schema_says() {
    let mut status = full();
    status.vips.clear();
    status.decisions.clear();
    status.flows = None;
    status.channel = None;
    status.relay.next = None;
    for node in &mut status.nodes {
        (node.zone, node.reason, node.silent_ms) = (None, None, None);
        (node.version, node.fingerprint) = (None, None);
        node.fitness = "unknown".to_owned();
    }
    assert_eq!(faults(&serde_json::to_value(status).unwrap()), Vec::<String>::new());
}

#[test]
fn a_status_of_a_version_that_tells_less_is_read() {
    let mut older = serde_json::to_value(full()).unwrap();
    for added in ["flows", "haproxy_problem", "channel"] {
        older.as_object_mut().unwrap().remove(added);
    }
    older["relay"].as_object_mut().unwrap().remove("tunnels");
    let read: Status = serde_json::from_value(older).unwrap();
    assert_eq!((read.flows, read.haproxy_problem, read.channel), (None, None, None));
}

#[test]
fn the_schema_check_itself_finds_what_differs() {
    let mut status = serde_json::to_value(full()).unwrap();
    status["vips"][0].as_object_mut().unwrap().remove("owner");
    status["nodes"][1]["fitness"] = json!("sick");
    status["nodes"][2]["news"] = json!(1);
    status["timers"]["lease_ms"] = json!(-1);
    status["alarms"] = json!([1]);
    let mut found = faults(&status);
    found.sort();
    assert_eq!(
        found,
        [
            "/alarms/0: 1 is no [\"string\"]",
            "/nodes/1/fitness: \"sick\" is not among [\"fit\",\"degraded\",\"unfit\",\"unknown\"]",
            "/nodes/2/news: is not described",
            "/timers/lease_ms: -1 is below 0",
            "/vips/0/owner: is missing",
        ]
    );
}

#[test]
fn every_field_of_the_schema_is_described() {
    fn look(value: &Value, undescribed: &mut Vec<String>) {
        if let Some(Value::Object(properties)) = value.get("properties") {
            for (name, property) in properties {
                if property.get("description").is_none() && property.get("$ref").is_none() {
                    undescribed.push(name.clone());
                }
            }
        }
        if let Value::Object(fields) = value {
            fields.values().for_each(|field| look(field, undescribed));
        }
    }
    let mut undescribed = Vec::new();
    look(&schema(), &mut undescribed);
    assert_eq!(undescribed, Vec::<String>::new());
}

fn schema() -> Value {
    serde_json::from_str(include_str!("../../../../docs/status.schema.json")).unwrap()
}

fn faults(value: &Value) -> Vec<String> {
    let schema = schema();
    let mut faults = Vec::new();
    check(value, &schema, &schema, "", &mut faults);
    faults
}

/// The part of JSON Schema (draft 2020-12) that our schema uses; a key of it that is not known here is a fault.
fn check(value: &Value, rule: &Value, root: &Value, at: &str, faults: &mut Vec<String>) {
    for (key, wanted) in rule.as_object().unwrap() {
        match key.as_str() {
            "$schema" | "$defs" | "title" | "description" => {}
            "$ref" => {
                let pointer = wanted.as_str().unwrap().trim_start_matches('#');
                check(value, root.pointer(pointer).unwrap(), root, at, faults);
            }
            "type" => {
                let types = wanted.as_array().cloned().unwrap_or_else(|| vec![wanted.clone()]);
                if !types.iter().any(|name| is(value, name.as_str().unwrap())) {
                    faults.push(format!("{at}: {value} is no {}", Value::from(types)));
                }
            }
            "const" if value != wanted => faults.push(format!("{at}: {value} is not {wanted}")),
            "enum" if !wanted.as_array().unwrap().contains(value) => {
                faults.push(format!("{at}: {value} is not among {wanted}"));
            }
            "minimum" if value.as_f64().is_some_and(|number| number < wanted.as_f64().unwrap()) => {
                faults.push(format!("{at}: {value} is below {wanted}"));
            }
            "pattern" => {
                assert_eq!(wanted, "^[0-9a-f]{8}$", "the only pattern that is known here");
                let text = value.as_str().unwrap_or_default();
                let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
                if text.len() != 8 || !text.chars().all(hex) {
                    faults.push(format!("{at}: {value} does not match {wanted}"));
                }
            }
            "const" | "enum" | "minimum" | "required" => {}
            "properties" => fields(value, wanted.as_object().unwrap(), rule, root, at, faults),
            "items" => {
                for (place, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(item, wanted, root, &format!("{at}/{place}"), faults);
                }
            }
            other => panic!("the schema uses {other:?}, which is not known here"),
        }
    }
}

fn fields(value: &Value, known: &Map<String, Value>, rule: &Value, root: &Value, at: &str, faults: &mut Vec<String>) {
    let Some(fields) = value.as_object() else { return };
    for (name, field) in fields {
        match known.get(name) {
            Some(rule) => check(field, rule, root, &format!("{at}/{name}"), faults),
            None => faults.push(format!("{at}/{name}: is not described")),
        }
    }
    for name in rule["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            faults.push(format!("{at}/{name}: is missing"));
        }
    }
}

fn is(value: &Value, name: &str) -> bool {
    match name {
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the schema names the type {other:?}, which is not known here"),
    }
}
