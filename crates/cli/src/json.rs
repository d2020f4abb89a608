//! Records as JSON, one per line.

use bytes::Bytes;
use d_engine_client::Record;
use serde_json::{Map, Value};

/// Formats a record as `{"key": ..., "value": ...}`. Bytes that are not UTF-8 become `"key_hex"`
/// and `"value_hex"`.
pub(crate) fn record(record: &Record) -> String {
    let mut line = Map::new();
    put(&mut line, "key", &record.key);
    if let Some(value) = &record.value {
        put(&mut line, "value", value);
    }
    Value::Object(line).to_string()
}

/// Formats a key that has no value: `"value"` is null.
pub(crate) fn absent(key: &[u8]) -> String {
    let mut line = Map::new();
    put(&mut line, "key", key);
    line.insert("value".to_owned(), Value::Null);
    Value::Object(line).to_string()
}

/// Formats bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn put(line: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => line.insert(name.to_owned(), text.into()),
        Err(_) => line.insert(format!("{name}_hex"), hex(bytes).into()),
    };
}

/// Parses a line that [`record`] wrote. A line without a value is an error: it is no record to
/// import.
pub(crate) fn parse(line: &[u8]) -> Result<(Bytes, Bytes), String> {
    let line: Map<String, Value> =
        serde_json::from_slice(line).map_err(|error| format!("not a JSON object: {error}"))?;
    Ok((take(&line, "key")?, take(&line, "value")?))
}

fn take(line: &Map<String, Value>, name: &str) -> Result<Bytes, String> {
    let hex = format!("{name}_hex");
    match (line.get(name), line.get(&hex)) {
        (Some(Value::String(text)), None) => Ok(Bytes::from(text.clone())),
        (None, Some(Value::String(digits))) => bytes_of(digits)
            .ok_or_else(|| format!("`{hex}` is {digits:?}, which is not hexadecimal")),
        _ => Err(format!("a string `{name}` or `{hex}` is missing")),
    }
}

fn bytes_of(digits: &str) -> Option<Bytes> {
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok().filter(|_| pair.len() == 2)
    };
    pairs.map(byte).collect::<Option<Vec<u8>>>().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_record_holds_is_read_back() {
        for (key, value) in [
            (&b"plain"[..], &b"value"[..]),
            (b"", b""),
            (b"tab\there", b"carriage return at the end\r"),
            (b"\xef\xbb\xbfbyte order mark", b"line\nbreak"),
            (b"\xff\x00", b"\xfe"),
        ] {
            let written =
                Record { key: Bytes::from_static(key), value: Some(Bytes::from_static(value)) };
            let read = parse(record(&written).as_bytes());
            assert_eq!(read, Ok((Bytes::from_static(key), Bytes::from_static(value))));
        }
        for wrong in [&b"[]"[..], b"{", br#"{"key":"k"}"#, br#"{"key":"k","value":null}"#] {
            assert!(parse(wrong).is_err());
        }
        for digits in ["f", "fff", "zz", "+f"] {
            let line = format!(r#"{{"key":"k","value_hex":"{digits}"}}"#);
            assert!(parse(line.as_bytes()).is_err(), "{digits}");
        }
    }

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
