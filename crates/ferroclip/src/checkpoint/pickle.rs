//! Pickles, read as data: no name in one is ever called.
//!
//! A pickle is a program for a small stack machine. This one knows the operations that `torch.save` and
//! TorchScript write (protocol 2, and what later ones add) and the few names that stand for tensors, their storage
//! and containers. A name of a class that the file itself brings (`__torch__...`) becomes a record; objects of
//! `argparse` and `numpy`, which training scripts save beside the weights, are passed over; every other name is
//! refused before anything is made of it.
//!
//! Values that hold others are nodes of one list and refer to each other by number: however deep a file nests
//! them, nothing recurses, and what a pickle can allocate is bounded.

use std::collections::HashMap;

use safetensors::Dtype;

use super::cursor::Cursor;
use super::stored::MAX_SIDES;

/// Nodes of a pickle, and values that it notes. A tensor takes about seven, so this is far beyond any model with the
/// state of its optimiser.
pub(super) const MAX_NODES: usize = 1 << 18;
/// Values and marks that are put on the stack.
const MAX_VALUES: usize = 1 << 20;
/// Longest text that can be a name. A longer one is kept as nothing: it would be looked at wherever the pickle
/// recalls it.
const MAX_TEXT: usize = 4096;

/// A value: a plain one, or the number of a node.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// None, a number with a fraction, raw bytes: what nobody asks for.
    Nothing,
    Bool(bool),
    Int(i64),
    /// Where a text lies in the pickle.
    Text(usize, usize),
    Node(usize),
}

/// A value that holds others.
#[derive(Debug, PartialEq)]
pub(super) enum Node {
    List(Vec<Value>),
    Tuple(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// A name that may be called.
    Name(Name),
    /// An object of a class that the file brings, with its state.
    Record(Value),
    Storage {
        dtype: Dtype,
        /// Its name in the archive.
        key: Value,
        elements: Value,
    },
    Tensor {
        storage: Value,
        offset: Value,
        size: Value,
        stride: Value,
    },
    /// Passed over.
    Skipped,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Name {
    /// `torch.FloatStorage` and the like.
    Storage(Dtype),
    /// A function that gives a tensor of a storage.
    RebuildTensor,
    /// A function that gives back its first argument.
    Same,
    OrderedDict,
    /// A class of the file.
    Record,
    /// An object that is passed over.
    Skipped,
}

impl Name {
    fn new(module: &str, name: &str) -> Result<Name, String> {
        if module == "__torch__" || module.starts_with("__torch__.") {
            return Ok(Name::Record);
        }
        Ok(match (module, name) {
            ("torch", "FloatStorage") => Name::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Name::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Name::Storage(Dtype::BF16),
            ("torch", "DoubleStorage") => Name::Storage(Dtype::F64),
            ("torch", "LongStorage") => Name::Storage(Dtype::I64),
            ("torch", "IntStorage") => Name::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Name::Storage(Dtype::I16),
            ("torch", "CharStorage") => Name::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Name::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Name::Storage(Dtype::BOOL),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Name::RebuildTensor,
            ("torch._utils", "_rebuild_parameter")
            | ("torch", "Size")
            | (
                "torch.jit._pickle",
                "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist"
                | "restore_type_tag",
            ) => Name::Same,
            ("collections", "OrderedDict") => Name::OrderedDict,
            ("argparse", "Namespace")
            | ("numpy", "dtype" | "ndarray")
            | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct")
            | ("_codecs", "encode") => Name::Skipped,
            _ => {
                let start: String = format!("{module}.{name}").chars().take(80).collect();
                return Err(format!(
                    "the pickle names `{}`, which is no part of weights",
                    start.escape_debug()
                ));
            }
        })
    }
}

/// What a pickle holds.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    bytes: &'a [u8],
    nodes: Vec<Node>,
    pub(super) root: Value,
    /// Whether it names PyTorch's module `GELU`.
    pub(super) has_gelu: bool,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle; what stands behind its end is not looked at.
    ///
    /// # Errors
    /// When it is damaged, too large, or names what is no part of weights.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Pickle<'a>, String> {
        let mut machine = Machine {
            input: Cursor::new(bytes),
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            pushed: 0,
            has_gelu: false,
        };
        while machine.step()? {}
        let root = machine.pop()?;
        Ok(Pickle { bytes, nodes: machine.nodes, root, has_gelu: machine.has_gelu })
    }

    /// The node of a value, if it is one.
    pub(super) fn node(&self, value: &Value) -> Option<&Node> {
        match value {
            Value::Node(number) => self.nodes.get(*number),
            _ => None,
        }
    }

    /// The text of a value, if it is one.
    pub(super) fn text(&self, value: &Value) -> Option<&'a str> {
        text(self.bytes, value)
    }

    /// The entries of a dictionary, or the attributes of a record.
    pub(super) fn entries(&self, value: &Value) -> Option<&[(Value, Value)]> {
        match self.node(value)? {
            Node::Dict(entries) => Some(entries),
            Node::Record(state) => match self.node(state)? {
                Node::Dict(entries) => Some(entries),
                _ => None,
            },
            _ => None,
        }
    }

    /// The numbers of a tuple or list, at most [`MAX_SIDES`].
    pub(super) fn sizes(&self, value: &Value) -> Option<Vec<usize>> {
        let (Node::Tuple(items) | Node::List(items)) = self.node(value)? else { return None };
        if items.len() > MAX_SIDES { None } else { items.iter().map(size).collect() }
    }
}

/// A number that is not negative.
pub(super) fn size(value: &Value) -> Option<usize> {
    match value {
        Value::Int(n) => usize::try_from(*n).ok(),
        _ => None,
    }
}

fn text<'a>(bytes: &'a [u8], value: &Value) -> Option<&'a str> {
    let Value::Text(start, end) = *value else { return None };
    std::str::from_utf8(&bytes[start..end]).ok()
}

struct Machine<'a> {
    input: Cursor<'a>,
    nodes: Vec<Node>,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    /// Values and marks that were ever put on the stack.
    pushed: usize,
    has_gelu: bool,
}

impl Machine<'_> {
    /// One operation; whether there are more.
    fn step(&mut self) -> Result<bool, String> {
        match self.input.byte()? {
            // PROTO, FRAME: nothing depends on them.
            0x80 => drop(self.input.byte()?),
            0x95 => drop(self.input.take(8)?),
            b'.' => return Ok(false),
            b'(' => {
                self.count()?;
                self.marks.push(self.stack.len());
            }
            b'N' => self.push(Value::Nothing)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'0' => {
                self.pop()?;
            }
            op @ (b'K' | b'M' | b'J' | 0x8a) => self.integer(op)?,
            b'G' => {
                self.input.take(8)?;
                self.push(Value::Nothing)?;
            }
            op @ (b'X' | 0x8c | b'U' | b'T' | b'C' | b'B') => self.string(op)?,
            b']' => self.make(Node::List(Vec::new()))?,
            b')' => self.make(Node::Tuple(Vec::new()))?,
            b'}' => self.make(Node::Dict(Vec::new()))?,
            op @ (b't' | b'l' | b'd') => self.collect(op)?,
            op @ 0x85..=0x87 => {
                let from = self.upper(usize::from(op - 0x84))?;
                let items = self.stack.split_off(from);
                self.make(Node::Tuple(items))?;
            }
            b'a' => {
                let from = self.upper(1)?;
                self.append(from)?;
            }
            b'e' => {
                let from = self.mark()?;
                self.append(from)?;
            }
            b's' => {
                let from = self.upper(2)?;
                self.set(from)?;
            }
            b'u' => {
                let from = self.mark()?;
                self.set(from)?;
            }
            op @ (b'q' | b'r' | 0x94 | b'h' | b'j') => self.memory(op)?,
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.name(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let bytes = self.input.bytes();
                let both = text(bytes, &module).zip(text(bytes, &name));
                let (module, name) = both.ok_or("a name that is no text")?;
                self.name(module, name)?;
            }
            b'R' | 0x81 => self.call()?,
            b'b' => self.build()?,
            b'Q' => self.storage()?,
            other => {
                return Err(format!(
                    "the pickle holds operation {other:#04x}, which weights do not need"
                ));
            }
        }
        Ok(true)
    }

    /// One more value or mark.
    fn count(&mut self) -> Result<(), String> {
        self.pushed += 1;
        match self.pushed <= MAX_VALUES {
            true => Ok(()),
            false => Err(format!("the pickle holds more than {MAX_VALUES} values")),
        }
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        self.count()?;
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => Ok(self.stack.pop().expect("it is longer than its floor")),
            false => Err("the pickle takes a value that is not there".to_owned()),
        }
    }

    /// Where the uppermost `n` values begin.
    fn upper(&self, n: usize) -> Result<usize, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let from = self.stack.len().checked_sub(n).filter(|&from| from >= floor);
        from.ok_or_else(|| "the pickle takes a value that is not there".to_owned())
    }

    /// Where the values since the last mark begin; the mark is taken away.
    fn mark(&mut self) -> Result<usize, String> {
        self.marks.pop().ok_or_else(|| "the pickle has no mark where it needs one".to_owned())
    }

    fn make(&mut self, node: Node) -> Result<(), String> {
        if self.nodes.len() == MAX_NODES {
            return Err(format!("the pickle holds more than {MAX_NODES} objects"));
        }
        self.nodes.push(node);
        self.push(Value::Node(self.nodes.len() - 1))
    }

    fn integer(&mut self, op: u8) -> Result<(), String> {
        let value = match op {
            b'K' => i64::from(self.input.byte()?),
            b'M' => i64::from(self.input.u16()?),
            b'J' => i64::from(self.input.u32()? as i32),
            _ => {
                let length = usize::from(self.input.byte()?);
                let bytes = self.input.take(length)?;
                let negative = bytes.last().is_some_and(|&high| high >= 0x80);
                let mut wide = [if negative { 0xff } else { 0 }; 8];
                match wide.get_mut(..length) {
                    Some(low) => low.copy_from_slice(bytes),
                    // Of no size that a tensor can have.
                    None => return self.push(Value::Nothing),
                }
                i64::from_le_bytes(wide)
            }
        };
        self.push(Value::Int(value))
    }

    fn string(&mut self, op: u8) -> Result<(), String> {
        let length = match op {
            0x8c | b'U' | b'C' => usize::from(self.input.byte()?),
            _ => self.input.u32()? as usize,
        };
        let start = self.input.position();
        let bytes = self.input.take(length)?;
        let is_text = length <= MAX_TEXT && std::str::from_utf8(bytes).is_ok();
        self.push(if is_text { Value::Text(start, start + length) } else { Value::Nothing })
    }

    /// Everything since the last mark as one value.
    fn collect(&mut self, op: u8) -> Result<(), String> {
        let from = self.mark()?;
        let items = self.stack.split_off(from);
        match op {
            b't' => self.make(Node::Tuple(items)),
            b'l' => self.make(Node::List(items)),
            _ => {
                let entries = pairs(items)?;
                self.make(Node::Dict(entries))
            }
        }
    }

    /// The values from here on belong to the list below them.
    fn append(&mut self, from: usize) -> Result<(), String> {
        let items = self.stack.split_off(from);
        match self.top()? {
            Node::List(list) => list.extend(items),
            Node::Skipped => {}
            _ => return Err("the pickle appends to what is no list".to_owned()),
        }
        Ok(())
    }

    /// The keys and values from here on belong to the dictionary below them.
    fn set(&mut self, from: usize) -> Result<(), String> {
        let entries = pairs(self.stack.split_off(from))?;
        match self.top()? {
            Node::Dict(dict) => dict.extend(entries),
            Node::Skipped => {}
            _ => return Err("the pickle sets entries of what is no dictionary".to_owned()),
        }
        Ok(())
    }

    fn top(&mut self) -> Result<&mut Node, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack[floor..].last() {
            Some(Value::Node(number)) => Ok(&mut self.nodes[*number]),
            _ => Err("the pickle changes what is no object".to_owned()),
        }
    }

    /// Notes the uppermost value, or brings back one.
    fn memory(&mut self, op: u8) -> Result<(), String> {
        let place = match op {
            b'q' | b'h' => u32::from(self.input.byte()?),
            0x94 => self.memo.len() as u32,
            _ => self.input.u32()?,
        };
        if op == b'h' || op == b'j' {
            let value = self.memo.get(&place).cloned();
            return self.push(value.ok_or("the pickle recalls what it did not note")?);
        }
        let top = self.stack.last().cloned().ok_or("the pickle notes what is not there")?;
        self.memo.insert(place, top);
        match self.memo.len() <= MAX_NODES {
            true => Ok(()),
            false => Err(format!("the pickle notes more than {MAX_NODES} values")),
        }
    }

    fn name(&mut self, module: &str, name: &str) -> Result<(), String> {
        self.has_gelu |= module.starts_with("__torch__.torch.nn.") && name == "GELU";
        self.make(Node::Name(Name::new(module, name)?))
    }

    /// A function or class with its arguments, in a tuple.
    fn call(&mut self) -> Result<(), String> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let node = |value: &Value| match value {
            Value::Node(number) => Some(&self.nodes[*number]),
            _ => None,
        };
        let Some(Node::Name(name)) = node(&callee) else {
            return Err("the pickle calls what is no name".to_owned());
        };
        let Some(Node::Tuple(arguments)) = node(&arguments) else {
            return Err("the pickle calls a name without a tuple of arguments".to_owned());
        };
        match name {
            Name::Record => self.make(Node::Record(Value::Nothing)),
            Name::Skipped => self.make(Node::Skipped),
            Name::OrderedDict if arguments.is_empty() => self.make(Node::Dict(Vec::new())),
            Name::Same => match arguments.first().cloned() {
                Some(value) => self.push(value),
                None => Err("the pickle calls a name without its argument".to_owned()),
            },
            Name::RebuildTensor => {
                let [storage, offset, size, stride, rest @ ..] = arguments.as_slice() else {
                    return Err("the pickle holds a tensor without storage, size or stride".into());
                };
                // Behind whether it is trained and its hooks, of which there are none in a file.
                let is_plain = |metadata: &Value| match node(metadata) {
                    Some(Node::Dict(entries)) => entries.is_empty(),
                    _ => *metadata == Value::Nothing,
                };
                if !rest.iter().skip(2).all(is_plain) {
                    return Err(
                        "the pickle holds a tensor that is negated, conjugated or the like; \
                                save its `.contiguous().clone()`"
                            .into(),
                    );
                }
                let [storage, offset, size, stride] =
                    [storage, offset, size, stride].map(Clone::clone);
                self.make(Node::Tensor { storage, offset, size, stride })
            }
            Name::OrderedDict | Name::Storage(_) => {
                Err("the pickle calls a name in a way that is not known".to_owned())
            }
        }
    }

    /// The state of the object below it.
    fn build(&mut self) -> Result<(), String> {
        let state = self.pop()?;
        match self.top()? {
            Node::Record(kept) => *kept = state,
            // Attributes of a dictionary (`_metadata`) and of what is passed over.
            Node::Dict(_) | Node::Skipped => {}
            // PyTorch would put another storage, shape or place in the place of its own.
            Node::Tensor { .. } => return Err("the pickle gives a state to a tensor".to_owned()),
            _ => return Err("the pickle gives a state to what has none".to_owned()),
        }
        Ok(())
    }

    /// A persistent name: `("storage", class, key, device, elements)`.
    fn storage(&mut self) -> Result<(), String> {
        let value = self.pop()?;
        let (bytes, bad) =
            (self.input.bytes(), "the pickle names a storage in a way that is not known");
        let node = |value: &Value| match value {
            Value::Node(number) => Some(&self.nodes[*number]),
            _ => None,
        };
        let Some(Node::Tuple(items)) = node(&value) else { return Err(bad.to_owned()) };
        let [kind, class, key, _, elements, ..] = items.as_slice() else {
            return Err(bad.to_owned());
        };
        let (Some("storage"), Some(Node::Name(Name::Storage(dtype)))) =
            (text(bytes, kind), node(class))
        else {
            return Err(bad.to_owned());
        };
        let (dtype, key, elements) = (*dtype, key.clone(), elements.clone());
        self.make(Node::Storage { dtype, key, elements })
    }
}

/// Keys and values that follow each other.
fn pairs(items: Vec<Value>) -> Result<Vec<(Value, Value)>, String> {
    if !items.len().is_multiple_of(2) {
        return Err("the pickle has a key without a value".to_owned());
    }
    let mut items = items.into_iter();
    Ok(std::iter::from_fn(|| items.next().zip(items.next())).collect())
}

#[cfg(test)]
mod tests;
