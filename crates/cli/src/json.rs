//! Records as JSON, one in a line.

use d_engine_client::Record;
use serde_json::{Map, Value};

/// `{"key": ..., "value": ...}`; bytes that are no UTF-8 are `"key_hex"` and `"value_hex"`.
pub(crate) fn record(record: &Record) -> String {
    let mut line = Map::new();
    put(&mut line, "key", &record.key);
    if let Some(value) = &record.value {
        put(&mut line, "value", value);
    }
    Value::Object(line).to_string()
}

/// The same for a key that has no value.
pub(crate) fn absent(key: &[u8]) -> String {
    let mut line = Map::new();
    put(&mut line, "key", key);
    line.insert("value".to_owned(), Value::Null);
    Value::Object(line).to_string()
}

fn put(line: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => line.insert(name.to_owned(), text.into()),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            line.insert(format!("{name}_hex"), hex.into())
        }
    };
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn what_is_no_text_is_hexadecimal() {
        let of = |key: &'static [u8], value: Option<&'static [u8]>| {
            record(&Record { key: Bytes::from_static(key), value: value.map(Bytes::from_static) })
        };
        assert_eq!(of(b"a\"b", Some(b"x\ny")), r#"{"key":"a\"b","value":"x\ny"}"#);
        assert_eq!(of(b"\xff", Some(b"\x00\xfe")), r#"{"key_hex":"ff","value_hex":"00fe"}"#);
        assert_eq!(of(b"k", None), r#"{"key":"k"}"#);
        assert_eq!(absent(b"k"), r#"{"key":"k","value":null}"#);
    }
}
