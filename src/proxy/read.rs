//! Reads a proxy. Every key is checked, and errors name the key.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::{EXAMPLES, Method, Proxy, SessionOptions, StageRuns, StageText, VERSION, kind_of};
use crate::error::{Error, Result};
use crate::signature::Rows;

/// A proxy holds a model's state: a transition matrix, a list of labels; weights belong into ONNX files.
const MOST_PROXY_BYTES: u64 = 64 << 20;
/// Most stages of a chain.
const MOST_STAGES: usize = 64;
impl Proxy {
    /// Reads a file.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`, naming the key: expected and got.
    pub(crate) fn read(path: &Path) -> Result<Proxy> {
        let mut text = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(MOST_PROXY_BYTES + 1).read_to_end(&mut text))
            .map_err(|e| Error::precondition(e.to_string()))?;
        if text.len() as u64 > MOST_PROXY_BYTES {
            return Err(Error::precondition(format!(
                "it has more than {MOST_PROXY_BYTES} bytes, the most for a proxy; put weights into an ONNX file"
            )));
        }
        Proxy::parse(&text)
    }

    /// # Errors
    /// As [`Proxy::read`].
    pub(crate) fn parse(text: &[u8]) -> Result<Proxy> {
        let value: Value = serde_json::from_slice(text).map_err(|e| {
            Error::precondition(format!(
                "it is not JSON ({e}); expected a proxy such as {EXAMPLES}; a proxy of an older Python program has to be \
                 exported again"
            ))
        })?;
        let object = Object::of("the proxy", value)?;
        if object.get("mdm").and_then(Value::as_u64) != Some(VERSION) {
            return Err(Error::precondition(format!(
                "expected \"mdm\":{VERSION}, the proxy format of this version, got {}",
                object.get("mdm").unwrap_or(&Value::Null)
            )));
        }
        if !object.has("methods") {
            let method = method(object, &["mdm"])?;
            return Ok(Proxy {
                methods: vec![(None, method)],
            });
        }
        object.only(&["mdm", "methods", "rows"])?;
        let rows = object.rows()?;
        let listed = Object::of("\"methods\"", object.value("methods"))?;
        let mut methods = Vec::new();
        for (name, value) in listed.map {
            if name.is_empty() || name.contains(['/', '.']) {
                return Err(Error::precondition(format!(
                    "\"methods\": {name:?} cannot be a method's name; expected one that is not empty and has neither / nor a dot"
                )));
            }
            let mut method = method(Object::of(&format!("method {name:?}"), value)?, &[])?;
            method.rows = method.rows.or(rows);
            methods.push((Some(name), method));
        }
        if methods.is_empty() {
            return Err(Error::precondition(
                "\"methods\" is empty, expected at least one",
            ));
        }
        Ok(Proxy { methods })
    }
}

/// An object of the proxy, and what to call it in messages.
pub(super) struct Object {
    place: String,
    pub(super) map: Map<String, Value>,
}

impl Object {
    pub(super) fn of(place: &str, value: Value) -> Result<Object> {
        match value {
            Value::Object(map) => Ok(Object {
                place: place.to_owned(),
                map,
            }),
            other => Err(Error::precondition(format!(
                "{place}: expected a JSON object, got {}",
                kind_of(&other)
            ))),
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key)
    }

    /// The value of that key, or null.
    pub(super) fn value(&self, key: &str) -> Value {
        self.get(key).cloned().unwrap_or(Value::Null)
    }

    /// No other keys than these.
    pub(super) fn only(&self, known: &[&str]) -> Result<()> {
        match self.map.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let known: Vec<String> = known.iter().map(|key| format!("{key:?}")).collect();
                Err(Error::precondition(format!(
                    "{}: {key:?} is unknown here, expected {}",
                    self.place,
                    known.join(", ")
                )))
            }
        }
    }

    pub(super) fn wrong(&self, key: &str, expected: &str) -> Error {
        let got = match self.get(key) {
            Some(value @ (Value::Array(_) | Value::Object(_))) => kind_of(value).to_owned(),
            Some(value) => value.to_string(),
            None => "nothing".to_owned(),
        };
        Error::precondition(format!(
            "{}: {key:?} is {got}, expected {expected}",
            self.place
        ))
    }

    fn text(&self, key: &str, expected: &str) -> Result<Option<String>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
            Some(_) => Err(self.wrong(key, expected)),
        }
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(count) if (1..=1 << 20).contains(&count) => Ok(Some(count)),
                _ => Err(self.wrong(key, "a whole number from 1 on")),
            },
        }
    }

    fn rows(&self) -> Result<Option<Rows>> {
        match self.get("rows").map(|rows| rows.as_str()) {
            None => Ok(None),
            Some(Some("independent")) => Ok(Some(Rows::Independent)),
            Some(Some("whole")) => Ok(Some(Rows::Whole)),
            Some(_) => Err(self.wrong("rows", "\"independent\" or \"whole\"")),
        }
    }
}

/// Stages, or one stage written in the place of them.
fn method(object: Object, more: &[&str]) -> Result<Method> {
    let rows = object.rows()?;
    let warm_up = match object.get("warm_up") {
        None => None,
        Some(Value::Object(inputs)) => Some(inputs.clone()),
        Some(_) => return Err(object.wrong("warm_up", "an object of rows by input")),
    };
    let own = [more, &["rows", "warm_up"]].concat();
    let stages = if object.has("stages") {
        object.only(&[&own[..], &["stages"]].concat())?;
        let Value::Array(listed) = object.value("stages") else {
            return Err(object.wrong("stages", "a list"));
        };
        if listed.is_empty() || listed.len() > MOST_STAGES {
            return Err(Error::precondition(format!(
                "{}: \"stages\" has {} stages, expected 1 to {MOST_STAGES}",
                object.place,
                listed.len()
            )));
        }
        let stages = listed.into_iter().enumerate();
        stages
            .map(|(index, value)| {
                stage(
                    &Object::of(&format!("stage {}", index + 1), value)?,
                    &["name"],
                )
            })
            .collect::<Result<Vec<_>>>()?
    } else {
        vec![stage(&object, &own)?]
    };
    Ok(Method {
        stages,
        rows,
        warm_up,
    })
}

fn stage(object: &Object, more: &[&str]) -> Result<StageText> {
    let name = if more.contains(&"name") {
        object.text("name", "a name")?
    } else {
        None
    };
    let path = "the path of a file, relative to the proxy's folder";
    let (file, runs) = match (object.text("onnx", path)?, object.text("plugin", path)?) {
        (Some(file), None) => {
            object.only(&[more, &["onnx", "options"]].concat())?;
            let options = match object.get("options") {
                None => SessionOptions::default(),
                Some(options) => {
                    SessionOptions::of(options.clone()).map_err(|e| e.context(&object.place))?
                }
            };
            (file, StageRuns::Onnx(options))
        }
        (None, Some(file)) => {
            object.only(&[more, &["plugin", "entry", "state"]].concat())?;
            let runs = StageRuns::Plugin {
                entry: object.text("entry", "the name of one of the plugin's entries")?,
                state: object.value("state"),
            };
            (file, runs)
        }
        (one, _) => {
            let said = if one.is_some() { "both" } else { "none" };
            let known = [
                more,
                &[
                    "onnx", "options", "plugin", "entry", "state", "stages", "methods",
                ],
            ];
            object.only(&known.concat())?;
            return Err(Error::precondition(format!(
                "{}: expected one of \"onnx\" and \"plugin\" (or a list of \"stages\"), got {said}",
                object.place
            )));
        }
    };
    Ok(StageText { name, file, runs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let read = |text: &str| Proxy::parse(text.as_bytes()).unwrap();
        let (name, method) = read(
            r#"{"mdm":1,"onnx":"m.onnx","rows":"whole","warm_up":{"x":[1]},"options":{"intra_op_threads":2,
                "graph_optimization":"basic","execution_provider":{"cudnn_conv_use_max_workspace":true},"batch":8}}"#,
        )
        .method(None)
        .unwrap();
        assert_eq!((name, method.rows), (None, Some(Rows::Whole)));
        assert!(method.warm_up.is_some());
        let stage = &method.stages[0];
        let StageRuns::Onnx(options) = &stage.runs else {
            panic!("{method:?}")
        };
        assert_eq!((stage.file.as_str(), options.batch), ("m.onnx", Some(8)));
        assert_eq!(
            options.execution_provider["cudnn_conv_use_max_workspace"],
            "1"
        );
        let chain = r#"{"mdm":1,"stages":[{"name":"pre","plugin":"p.so","entry":"a","state":{"k":1}},
            {"onnx":"m.onnx"},{"plugin":"p.so","entry":"b"}]}"#;
        let (_, method) = read(chain).method(None).unwrap();
        let names: Vec<String> = method.stages.iter().map(StageText::shown).collect();
        assert_eq!(names, ["pre", "m.onnx", "p.so:b"]);
        let several = r#"{"mdm":1,"rows":"whole","methods":{"predict":{"onnx":"a.onnx"},
            "embed":{"stages":[{"onnx":"b.onnx"}],"rows":"independent"}}}"#;
        assert_eq!(
            read(several).method(None).unwrap().1.rows,
            Some(Rows::Whole)
        );
        let (name, method) = read(several).method(Some("embed")).unwrap();
        assert_eq!(
            (name.as_deref(), method.rows),
            (Some("embed"), Some(Rows::Independent))
        );
        let e = read(several).method(Some("other")).unwrap_err();
        assert!(e.message().contains("\"embed\", \"predict\""), "{e}");
        let e = read(r#"{"mdm":1,"onnx":"m.onnx"}"#)
            .method(Some("predict"))
            .unwrap_err();
        assert!(e.message().contains("lists none"), "{e}");
    }

    #[test]
    fn what_is_wrong_names_the_key_and_what_was_expected() {
        for (text, why) in [
            ("[1]", "the proxy: expected a JSON object, got an array"),
            (r#"{"mdm":1}"#, "expected one of \"onnx\" and \"plugin\""),
            (
                r#"{"mdm":1,"onx":"m"}"#,
                "\"onx\" is unknown here, expected \"mdm\", \"rows\"",
            ),
            (
                r#"{"mdm":1,"onnx":"m","state":1}"#,
                "\"state\" is unknown here",
            ),
            (r#"{"mdm":1,"onnx":"m","plugin":"p"}"#, "got both"),
            (
                r#"{"mdm":1,"onnx":7}"#,
                "\"onnx\" is 7, expected the path of a file",
            ),
            (
                r#"{"mdm":1,"onnx":"m","rows":"all"}"#,
                "\"rows\" is \"all\", expected \"independent\"",
            ),
            (
                r#"{"mdm":1,"onnx":"m","options":{"threads":1}}"#,
                "\"options\": \"threads\" is unknown",
            ),
            (
                r#"{"mdm":1,"onnx":"m","options":{"batch":0}}"#,
                "\"batch\" is 0, expected a whole",
            ),
            (
                r#"{"mdm":1,"onnx":"m","options":{"graph_optimization":"fast"}}"#,
                "is \"fast\", expected",
            ),
            (r#"{"mdm":1,"stages":[]}"#, "has 0 stages"),
            (
                r#"{"mdm":1,"stages":[{"onnx":"m"},{"name":"x"}]}"#,
                "stage 2: expected one of",
            ),
            (
                r#"{"mdm":1,"stages":[{"onnx":"m","rows":"whole"}]}"#,
                "stage 1: \"rows\" is unknown",
            ),
            (
                r#"{"mdm":1,"stages":[{"onnx":"m"}],"onnx":"m"}"#,
                "\"onnx\" is unknown here",
            ),
            (r#"{"mdm":1,"methods":{}}"#, "\"methods\" is empty"),
            (
                r#"{"mdm":1,"methods":{"a.b":{"onnx":"m"}}}"#,
                "cannot be a method's name",
            ),
            (
                r#"{"mdm":1,"methods":{"a":{"onnx":"m","x":1}}}"#,
                "method \"a\": \"x\" is unknown",
            ),
            (
                r#"{"mdm":1,"onnx":"m","warm_up":[1]}"#,
                "\"warm_up\" is an array",
            ),
        ] {
            let e = Proxy::parse(text.as_bytes()).unwrap_err();
            assert!(e.message().contains(why), "{text}: {e}");
        }
    }
}
