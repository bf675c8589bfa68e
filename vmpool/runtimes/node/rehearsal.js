// What the runtime loads and calls before it knows its function (see rehearse in runtime.js).
'use strict';

const os = require('os');

class Thing {
  constructor(value, { size = 1 } = {}) { this.value = value ?? os.EOL; this.size = size; }
}

exports.handler = async (event, context) => {
  const { warm, ...rest } = event;
  const thing = new Thing(warm, { size: Object.keys(rest).length });
  await Promise.resolve();
  return { event, size: thing.size, id: context.awsRequestId, left: context.getRemainingTimeInMillis() };
};
