//! Writes a proxy, in the shortest form that reads back as the same.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use super::{Method, Proxy, StageRuns, StageText, VERSION};

impl Proxy {
    /// The file's text.
    pub(crate) fn to_json(&self) -> String {
        // Strings, numbers, and values that are JSON already: there is nothing in it that JSON does not take.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

impl Serialize for Proxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("mdm", &VERSION)?;
        match self.methods.as_slice() {
            [(None, method)] => method.write(&mut map)?,
            methods => map.serialize_entry("methods", &Methods(methods))?,
        }
        map.end()
    }
}

/// Methods that have names.
struct Methods<'a>(&'a [(Option<String>, Method)]);

impl Serialize for Methods<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let named = self.0.iter();
        serializer.collect_map(named.filter_map(|(name, method)| Some((name.as_ref()?, method))))
    }
}

impl Serialize for Method {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.write(&mut map)?;
        map.end()
    }
}

impl Method {
    fn write<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        match self.stages.as_slice() {
            [stage @ StageText { name: None, .. }] => stage.write(map)?,
            stages => map.serialize_entry("stages", stages)?,
        }
        if let Some(rows) = &self.rows {
            map.serialize_entry("rows", rows)?;
        }
        if let Some(warm_up) = &self.warm_up {
            map.serialize_entry("warm_up", warm_up)?;
        }
        Ok(())
    }
}

impl Serialize for StageText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(name) = &self.name {
            map.serialize_entry("name", name)?;
        }
        self.write(&mut map)?;
        map.end()
    }
}

impl StageText {
    /// All but the name.
    fn write<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        match &self.runs {
            #[cfg(feature = "server")]
            StageRuns::Onnx(options) => {
                map.serialize_entry("onnx", &self.file)?;
                if *options != super::SessionOptions::default() {
                    map.serialize_entry("options", options)?;
                }
            }
            StageRuns::Plugin { entry, state } => {
                map.serialize_entry("plugin", &self.file)?;
                if let Some(entry) = entry {
                    map.serialize_entry("entry", entry)?;
                }
                if *state != Value::Null {
                    map.serialize_entry("state", state)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_as_the_same() {
        for text in [
            r#"{"mdm":1,"onnx":"m.onnx"}"#,
            r#"{"mdm":1,"onnx":"m.onnx","options":{"intra_op_threads":2,"graph_optimization":"basic",
                "execution_provider":{"cudnn_conv_use_max_workspace":true,"tunable":7},"batch":8},
                "rows":"whole","warm_up":{"x":[[1,2.5],[3,4]],"text":["a","b"]}}"#,
            r#"{"mdm":1,"onnx":"m.onnx","options":{"graph_optimization":"none"}}"#,
            r#"{"mdm":1,"plugin":"libp.so"}"#,
            r#"{"mdm":1,"plugin":"libp.so","entry":"ner","state":{"tags":["BD"],"n":1e300},"rows":"independent"}"#,
            r#"{"mdm":1,"plugin":"libp.so","state":[]}"#,
            r#"{"mdm":1,"stages":[{"name":"pre","plugin":"p.so","entry":"a","state":{"k":1}},{"onnx":"m.onnx",
                "options":{"batch":4}},{"plugin":"p.so","entry":"b"}],"rows":"whole"}"#,
            // One stage with a name of its own is no stage in the place of them.
            r#"{"mdm":1,"stages":[{"name":"only","onnx":"m.onnx"}]}"#,
            r#"{"mdm":1,"methods":{"predict":{"onnx":"a.onnx"},
                "embed":{"stages":[{"onnx":"b.onnx"},{"plugin":"p.so"}],"rows":"independent"}}}"#,
            r#"{"mdm":1,"rows":"whole","methods":{"only":{"onnx":"a.onnx","warm_up":{"x":[1]}}}}"#,
        ] {
            let read = Proxy::parse(text.as_bytes()).unwrap();
            let written = read.to_json();
            let again = Proxy::parse(written.as_bytes()).unwrap_or_else(|e| panic!("{written}{e}"));
            assert_eq!(again, read, "{text}\n{written}");
            // Nothing is said that need not be.
            let plain = |text: &str| text.split_whitespace().collect::<String>();
            assert!(
                plain(&written).len() <= plain(text).len() + "\"rows\":\"whole\",".len(),
                "{written}"
            );
        }
    }

    /// What [`crate::plugin::dump`] has always written.
    #[test]
    fn the_keys_stand_in_their_usual_order() {
        let mut proxy = Proxy::of_plugin("libner.so", serde_json::json!({"tags": ["BD"]}));
        proxy.set_entry("ner");
        proxy.set_rows(crate::signature::Rows::Whole);
        let plain: String = proxy.to_json().split_whitespace().collect();
        let expected = r#"{"mdm":1,"plugin":"libner.so","entry":"ner","state":{"tags":["BD"]},"rows":"whole"}"#;
        assert_eq!(plain, expected);
    }
}
