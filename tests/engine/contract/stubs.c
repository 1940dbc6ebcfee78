/* What the Python bindings of the full TensorRT need from its libraries in order to be imported. Nothing can be made
 * with these: they serve to read names, enums and signatures on a machine without the libraries. Compiled once for each
 * library name that the bindings ask for. */
#define STUB(name) void *name(void) { return 0; }

STUB(createInferBuilder_INTERNAL)
STUB(createInferRefitter_INTERNAL)
STUB(createInferRuntime_INTERNAL)
STUB(createNvOnnxParserRefitter_INTERNAL)
STUB(createNvOnnxParser_INTERNAL)
STUB(getBuilderPluginRegistry)
STUB(getNvOnnxParserVersion)
STUB(getPluginRegistry)
STUB(initLibNvInferPlugins)
