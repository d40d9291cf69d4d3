//! The JSON Schema of the whole file, made from the structs that parse it and from the registry of filters.

use super::Config;
use crate::filter::Registry;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// JSON Schema 2020-12 of a configuration file, for editors and for [`super::reference()`]. It takes `${NAME}` for any text, and
/// says nothing about references between sections.
pub fn schema(registry: &Registry) -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let mut filters: Vec<Value> = registry
        .iter()
        .map(|registration| {
            let table = (registration.schema)(&mut generator).to_value();
            one_key(registration.name, table)
        })
        .collect();
    filters.push(one_key("use", json!({ "type": "string", "description": "The name of a chain whose filters run here." })));
    let filter = json!({ "description": "One filter: a table with exactly one key, its name.", "oneOf": filters });
    generator.definitions_mut().insert("Filter".to_owned(), filter);
    let mut schema = generator.into_root_schema_for::<Config>().to_value();
    allow_variables(&mut schema);
    schema
}

/// A text that must have a form may also have a variable in it, which brings the form.
fn allow_variables(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if let Some(Value::String(pattern)) = members.get_mut("pattern") {
                pattern.push_str(r"|\$\{");
            }
            members.values_mut().for_each(allow_variables);
        }
        Value::Array(list) => list.iter_mut().for_each(allow_variables),
        _ => {}
    }
}

fn one_key(name: &str, value: Value) -> Value {
    let mut properties = Map::new();
    properties.insert(name.to_owned(), value);
    json!({ "type": "object", "properties": properties, "required": [name], "additionalProperties": false })
}
