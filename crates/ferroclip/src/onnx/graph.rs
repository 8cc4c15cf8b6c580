//! A graph under construction: operators in memory, weights on disk as they come.

use std::io::Write;
use std::path::Path;

use super::proto::{
    AttributeProto, EXTERNAL, FLOAT, GraphProto, INT64, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, ValueInfoProto,
};
use crate::checkpoint::TensorReader;
use crate::error::Error;
use crate::param::WeightTensor;

/// The version of the operators, and of the format that came with it.
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;
/// Where tensors begin in the file of weights: at multiples of it.
const ALIGNMENT: u64 = 64;

/// The name of a value in a graph.
pub(super) type Name = String;

/// A graph whose weights come from a model's files and go to a file of their own.
pub(super) struct Graph<'a> {
    tensors: &'a mut TensorReader,
    data: &'a mut dyn Write,
    data_file: &'a str,
    path: &'a Path,
    written: u64,
    graph: GraphProto,
}

impl<'a> Graph<'a> {
    /// An empty graph. `data_file` is what the graph calls the file that `data` writes, `path` what errors call it.
    pub(super) fn new(
        tensors: &'a mut TensorReader,
        data: &'a mut dyn Write,
        data_file: &'a str,
        path: &'a Path,
    ) -> Graph<'a> {
        Graph { tensors, data, data_file, path, written: 0, graph: GraphProto::default() }
    }

    /// The whole model, and the bytes of its weights.
    pub(super) fn finish(self, name: &str) -> (ModelProto, u64) {
        let opset = OperatorSetIdProto { domain: String::new(), version: OPSET };
        let model = ModelProto {
            ir_version: IR_VERSION,
            producer_name: "ferroclip".to_owned(),
            graph: Some(GraphProto { name: name.to_owned(), ..self.graph }),
            opset_import: vec![opset],
        };
        (model, self.written)
    }

    pub(super) fn input(&mut self, value: ValueInfoProto) -> Name {
        let name = value.name.clone();
        self.graph.input.push(value);
        name
    }

    /// Makes a value an output, which gets this name.
    pub(super) fn output(&mut self, value: &str, info: ValueInfoProto) {
        self.push("Identity", &[value], vec![], &[&info.name]);
        self.graph.output.push(info);
    }

    /// The result of an operator.
    pub(super) fn op(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> Name {
        let name = format!("{}_{}", op_type.to_lowercase(), self.graph.node.len());
        self.push(op_type, inputs, attributes, &[&name]);
        name
    }

    /// The results of an operator that has several.
    pub(super) fn op_with_outputs<const N: usize>(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> [Name; N] {
        let number = self.graph.node.len();
        let names: [Name; N] =
            std::array::from_fn(|i| format!("{}_{number}_{i}", op_type.to_lowercase()));
        let outputs: Vec<&str> = names.iter().map(String::as_str).collect();
        self.push(op_type, inputs, attributes, &outputs);
        names
    }

    fn push(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
        outputs: &[&str],
    ) {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        self.graph.node.push(NodeProto {
            input: owned(inputs),
            output: owned(outputs),
            name: format!("{op_type}_{}", self.graph.node.len()),
            op_type: op_type.to_owned(),
            attribute,
        });
    }

    /// A tensor of the model.
    ///
    /// # Panics
    /// When the config has none of this name.
    pub(super) fn read(&mut self, name: &str) -> Result<WeightTensor, Error> {
        self.tensors.read(name)
    }

    /// Whether the model has a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.has(name)
    }

    /// A tensor of the model as it is.
    pub(super) fn weight(&mut self, name: &str) -> Result<Name, Error> {
        let tensor = self.read(name)?;
        self.keep(name, &tensor.shape, &tensor.data)
    }

    /// A tensor of the model in another shape, of as many elements.
    pub(super) fn weight_as(&mut self, name: &str, shape: &[usize]) -> Result<Name, Error> {
        let tensor = self.read(name)?;
        self.keep(name, shape, &tensor.data)
    }

    /// Writes numbers into the file of weights.
    pub(super) fn keep(
        &mut self,
        name: &str,
        shape: &[usize],
        numbers: &[f32],
    ) -> Result<Name, Error> {
        assert_eq!(shape.iter().product::<usize>(), numbers.len(), "numbers fill the shape");
        let begin = self.written.next_multiple_of(ALIGNMENT);
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let gap = vec![0; (begin - self.written) as usize];
        let written = self.data.write_all(&gap).and_then(|()| self.data.write_all(&bytes));
        written.map_err(|source| Error::io("write", self.path, source))?;
        self.written = begin + bytes.len() as u64;
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
        self.graph.initializer.push(TensorProto {
            dims: shape.iter().map(|&side| side as i64).collect(),
            data_type: FLOAT,
            name: name.to_owned(),
            raw_data: None,
            external_data: vec![
                entry("location", self.data_file.to_owned()),
                entry("offset", begin.to_string()),
                entry("length", bytes.len().to_string()),
            ],
            data_location: EXTERNAL,
        });
        Ok(name.to_owned())
    }

    /// A constant list of whole numbers.
    pub(super) fn ints(&mut self, numbers: &[i64]) -> Name {
        let raw = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.constant(INT64, vec![numbers.len() as i64], raw)
    }

    /// A constant number.
    pub(super) fn scalar(&mut self, number: f32) -> Name {
        self.constant(FLOAT, vec![], number.to_le_bytes().to_vec())
    }

    fn constant(&mut self, data_type: i32, dims: Vec<i64>, raw: Vec<u8>) -> Name {
        let name = format!("constant_{}", self.graph.initializer.len());
        self.graph.initializer.push(TensorProto {
            dims,
            data_type,
            name: name.clone(),
            raw_data: Some(raw),
            ..TensorProto::default()
        });
        name
    }
}
