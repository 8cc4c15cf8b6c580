use super::*;

fn error(bytes: &[u8]) -> String {
    Pickle::read(bytes).expect_err("a bad pickle")
}

#[test]
fn what_python_writes_is_read() {
    // pickle.dumps({"a": [1, -2, 300], "b": (True, None)}, protocol=2)
    let bytes = b"\x80\x02}q\0(X\x01\0\0\0aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01eX\x01\0\0\0bq\x03\x88N\x86q\x04u.";
    let pickle = Pickle::read(bytes).expect("a pickle");
    let entries = pickle.entries(&pickle.root).expect("a dictionary");
    assert_eq!(
        entries.iter().map(|(key, _)| pickle.text(key)).collect::<Vec<_>>(),
        [Some("a"), Some("b")]
    );
    let numbers = vec![Value::Int(1), Value::Int(-2), Value::Int(300)];
    assert_eq!(pickle.node(&entries[0].1), Some(&Node::List(numbers)));
    let both = vec![Value::Bool(true), Value::Nothing];
    assert_eq!(pickle.node(&entries[1].1), Some(&Node::Tuple(both)));
}

#[test]
fn integers_of_all_forms() {
    let number = |bytes: &[u8]| Pickle::read(bytes).expect("a pickle").root;
    assert_eq!(number(b"K\xff."), Value::Int(255));
    assert_eq!(number(b"M\xff\xff."), Value::Int(65_535));
    assert_eq!(number(b"J\xff\xff\xff\xff."), Value::Int(-1));
    assert_eq!(number(b"\x8a\x05\0\0\0\0\x01."), Value::Int(1 << 32));
    assert_eq!(number(b"\x8a\x01\xff."), Value::Int(-1));
    assert_eq!(number(b"\x8a\0."), Value::Int(0));
    assert_eq!(number(b"\x8a\x09\0\0\0\0\0\0\0\0\x01."), Value::Nothing);
}

#[test]
fn foreign_names_are_refused_before_anything_is_made_of_them() {
    let shown = error(b"\x80\x02cos\nsystem\nX\x02\0\0\0lsq\0\x85R.");
    assert!(shown.contains("`os.system`"), "{shown}");
    // The same with protocol 4.
    assert!(error(b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93.").contains("`os.system`"));
    for name in [
        "builtins\neval",
        "torch\nload",
        "torch.hub\nload",
        "numpy\nload",
        "torchx\nFloatStorage",
        "__torch__x\nA",
    ] {
        let shown = error(format!("c{name}\n.").as_bytes());
        assert!(shown.contains(&name.replace('\n', ".")), "{shown}");
    }
    let long = format!("c{}\n{}\n.", "a".repeat(10_000), "\u{1b}[31m");
    assert!(error(long.as_bytes()).len() < 500);
}

#[test]
fn objects_of_training_scripts_are_passed_over() {
    // argparse.Namespace with a state, made by NEWOBJ and BUILD, beside a number.
    let bytes = b"\x80\x02}(X\x04\0\0\0argscargparse\nNamespace\n)\x81}X\x02\0\0\0lrK\x01sbX\x01\0\0\0nK\x07u.";
    let pickle = Pickle::read(bytes).expect("a pickle");
    let entries = pickle.entries(&pickle.root).expect("a dictionary");
    assert_eq!(pickle.node(&entries[0].1), Some(&Node::Skipped));
    assert_eq!(entries[1].1, Value::Int(7));
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    let whole = b"\x80\x02}q\0(X\x01\0\0\0aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01eX\x01\0\0\0bq\x03\x88N\x86q\x04u.";
    for end in 0..whole.len() {
        let _ = Pickle::read(&whole[..end]).expect_err("it is cut off");
    }
    for place in 0..whole.len() {
        for byte in 0..=u8::MAX {
            let mut bytes = whole.to_vec();
            bytes[place] = byte;
            let _ = Pickle::read(&bytes);
        }
    }
    for (bytes, part) in [
        (&b"0."[..], "not there"),
        (b"(0.", "not there"),
        (b"a.", "not there"),
        (b"u.", "no mark"),
        (b"K\x01K\x02a.", "no object"),
        (b"}K\x01a.", "no list"),
        (b"]K\x01K\x02s.", "no dictionary"),
        (b"}(K\x01u.", "key without a value"),
        (b"K\x01)R.", "no name"),
        (b"ccollections\nOrderedDict\nK\x01R.", "tuple"),
        (b"K\x01Q.", "storage"),
        (b"h\0.", "recalls"),
        (b"\x80\x02i.", "operation 0x69"),
        (b"", "truncated"),
    ] {
        let shown = error(bytes);
        assert!(shown.contains(part), "{shown}");
    }
}

#[test]
fn size_and_depth_are_bounded() {
    // A list in a list in a list: as deep as the limit on nodes allows, and nothing recurses.
    let deep = [vec![b']'; MAX_NODES], vec![b'a'; MAX_NODES - 1], b".".to_vec()].concat();
    assert!(Pickle::read(&deep).is_ok());
    let many = [vec![b']'; MAX_NODES + 1], b".".to_vec()].concat();
    assert!(error(&many).contains("objects"));
    let values = [b"N".repeat(MAX_VALUES + 1), b".".to_vec()].concat();
    assert!(error(&values).contains("values"));
    let marks = b"(".repeat(MAX_VALUES + 1);
    assert!(error(&marks).contains("values"));
    // MEMOIZE takes one byte for each note of the same value.
    let notes = [vec![b'N'], vec![0x94; MAX_NODES + 1], b".".to_vec()].concat();
    assert!(error(&notes).contains("notes more than"));
    // What cannot be a name is nothing.
    let text = |n: u32| [&b"X"[..], &n.to_le_bytes(), &vec![b'a'; n as usize], b"."].concat();
    let root = |bytes: &[u8]| Pickle::read(bytes).expect("a pickle").root;
    assert_eq!(root(&text(MAX_TEXT as u32)), Value::Text(5, 5 + MAX_TEXT));
    assert_eq!(root(&text(MAX_TEXT as u32 + 1)), Value::Nothing);
}
