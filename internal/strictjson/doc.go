// Package strictjson decodes JSON that people and their programs send, and says what is wrong with it in their words.
//
// What encoding/json lets pass, and what has cost users their data elsewhere, is an error here:
//
//   - a field that is not known, at any depth, and so one in another case: "VERSION" is not "version";
//   - a field that is there twice, where encoding/json takes the last;
//   - a null in place of a value, and as an element of an array; see Options;
//   - text that is not UTF-8, where encoding/json puts replacement characters, and a second value after the first.
//
// Errors name the field by its path in the JSON, such as messages[2].content, and types as JSON does. Nothing of Go is in them.
//
// It is go-json-experiment/json, the library that encoding/json/v2 is made from, with these settings and words.
package strictjson
