//! `filters = [{ NAME = { ... } }, { use = "CHAIN" }]`.
//!
//! Which names there are is known to the registry, not to serde. So the loader takes the list out of the table before serde
//! sees it and decodes each filter by its registration.

use super::decode::{Decoder, article};
use super::suggest::suggest;
use crate::filter::FilterSpec;
use crate::value::Located;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, IgnoredAny};
use std::borrow::Cow;
use std::ops::Deref;
use toml::Spanned;
use toml::de::DeValue;

/// The key that stands for the filters of a chain.
const USE: &str = "use";

/// One element of `filters`.
#[derive(Clone)]
pub enum FilterEntry {
    Filter(FilterSpec),
    /// The filters of a chain, by its name.
    Use(Located<String>),
}

/// The filters of a route or a chain, as written.
#[derive(Clone, Default)]
pub struct Filters {
    list: Vec<FilterEntry>,
    /// One is wrong, which has been reported, and left out.
    pub lacks_some: bool,
}

impl Deref for Filters {
    type Target = [FilterEntry];
    fn deref(&self) -> &[FilterEntry] {
        &self.list
    }
}

impl Filters {
    /// The chains that are used, in order.
    pub fn uses(&self) -> impl Iterator<Item = &Located<String>> {
        self.iter().filter_map(|entry| match entry {
            FilterEntry::Use(name) => Some(name),
            FilterEntry::Filter(_) => None,
        })
    }
}

/// Serde only learns that the key exists: [`Decoder::filters`] does the decoding.
impl<'de> Deserialize<'de> for Filters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Filters::default())
    }
}

impl JsonSchema for Filters {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Filters".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "array", "items": { "$ref": "#/$defs/Filter" } })
    }
}

impl<'i> Decoder<'_, 'i> {
    /// Takes `filters` out of a route or chain and decodes it. Leaves an empty list behind, so that serde does not miss it.
    pub fn filters(&mut self, section: &mut Spanned<DeValue<'i>>) -> Filters {
        self.list(section, "filters")
    }

    /// The same for the list behind any key.
    fn list(&mut self, section: &mut Spanned<DeValue<'i>>, key: &str) -> Filters {
        let mut filters = Filters::default();
        let DeValue::Table(table) = section.get_mut() else { return filters };
        let Some(value) = table.get_mut(key) else { return filters };
        let range = value.span();
        match std::mem::replace(value.get_mut(), DeValue::Array(Default::default())) {
            DeValue::Array(list) => {
                for element in list {
                    match self.filter(element) {
                        Some(entry) => filters.list.push(entry),
                        None => filters.lacks_some = true,
                    }
                }
            }
            other => {
                filters.lacks_some = true;
                let span = self.span(range);
                self.d
                    .error(span, "expected a list of filters")
                    .label(format!("this is {}", article(other.type_str())))
                    .help(format!("write {key} = [{{ NAME = {{ ... }} }}, ...]"));
            }
        }
        filters
    }

    fn filter(&mut self, element: Spanned<DeValue<'i>>) -> Option<FilterEntry> {
        let place = self.span(element.span());
        let table = match element.into_inner() {
            DeValue::Table(table) => table,
            other => {
                self.d
                    .error(place, "expected a filter")
                    .label(format!("this is {}", article(other.type_str())))
                    .help("write { NAME = { ... } } or { use = \"CHAIN\" }");
                return None;
            }
        };
        let mut keys = table.into_iter();
        let (Some((name, value)), None) = (keys.next(), keys.next()) else {
            self.d
                .error(place, "expected one filter here")
                .label("a table with exactly one key")
                .help("write each filter as a table of its own: [{ first = { ... } }, { second = { ... } }]");
            return None;
        };
        let span = self.span(name.span());
        let known = self.registry;
        if name.get_ref() == USE {
            let range = value.span();
            let decoded = self.decode(value, <String as Deserialize>::deserialize)?;
            return Some(FilterEntry::Use(Located { value: decoded.value, span: Some(self.span(range)) }));
        }
        let Some(registration) = known.get(name.get_ref()) else {
            let found = self.d.error(span, format!("there is no filter `{}`", name.get_ref()));
            let names: Vec<_> = known.names().chain([USE]).collect();
            suggest(found, name.get_ref(), "filters", names.into_iter());
            return None;
        };
        let mut value = value;
        let nested = match registration.nested {
            Some(key) => self.nested(&mut value, key)?,
            None => Vec::new(),
        };
        let decoded = self.decode(value, |table| (registration.decode_nested)(table, nested.clone()))?;
        let spec = FilterSpec { name: registration.name, span, prepared: decoded.value };
        decoded.whole.is_none().then_some(FilterEntry::Filter(spec))
    }

    /// The filters of a list within a filter. `None` if one is wrong: that was reported.
    fn nested(&mut self, filter: &mut Spanned<DeValue<'i>>, key: &str) -> Option<Vec<FilterSpec>> {
        let Filters { list, lacks_some } = self.list(filter, key);
        let mut clean = !lacks_some;
        let mut specs = Vec::new();
        for entry in list {
            match entry {
                FilterEntry::Filter(spec) => specs.push(spec),
                FilterEntry::Use(name) => {
                    clean = false;
                    self.d.error(name.span, format!("a chain cannot stand in `{key}`")).help("write its filters here");
                }
            }
        }
        clean.then_some(specs)
    }
}
