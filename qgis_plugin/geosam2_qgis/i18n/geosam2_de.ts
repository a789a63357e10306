<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE TS>
<TS version="2.1" language="de">
<context>
<name>GeoSAM2</name>
<message><source>&amp;Accept (Enter)</source>
<translation type="unfinished"></translation></message>
<message><source>&amp;Click on the map</source>
<translation type="unfinished"></translation></message>
<message><source>&amp;Detail</source>
<translation type="unfinished"></translation></message>
<message><source>&amp;Everything on the screen...</source>
<translation type="unfinished"></translation></message>
<message><source>&amp;Flag low quality</source>
<translation type="unfinished"></translation></message>
<message><source>&amp;Imagery</source>
<translation type="unfinished"></translation></message>
<message><source>&amp;Model</source>
<translation type="unfinished"></translation></message>
<message><source>&amp;Other shape</source>
<translation type="unfinished"></translation></message>
<message><source>&amp;Output</source>
<translation type="unfinished"></translation></message>
<message><source>&amp;Pause (Esc)</source>
<translation type="unfinished"></translation></message>
<message><source>&amp;Refine selected</source>
<translation type="unfinished"></translation></message>
<message><source>&amp;Resume (Esc)</source>
<translation type="unfinished"></translation></message>
<message><source>A package was not found for this Python ({python}).</source>
<translation type="unfinished"></translation></message>
<message><source>A run on this imagery was interrupted.</source>
<translation type="unfinished"></translation></message>
<message><source>Add GeoSAM2 object</source>
<translation type="unfinished"></translation></message>
<message><source>Add a raster layer or a basemap with a coordinate system, and choose it.</source>
<translation type="unfinished"></translation></message>
<message><source>Added to {layer}: {area}.</source>
<translation type="unfinished"></translation></message>
<message><source>As on the screen</source>
<translation type="unfinished"></translation></message>
<message><source>Automatic</source>
<translation type="unfinished"></translation></message>
<message><source>Browse...</source>
<translation type="unfinished"></translation></message>
<message><source>Ca&amp;ncel</source>
<translation type="unfinished"></translation></message>
<message><source>Cell size in the raster's units (0: the raster's own)</source>
<translation type="unfinished"></translation></message>
<message><source>Check the engine</source>
<translation type="unfinished"></translation></message>
<message><source>Choose a polygon layer in the layer list.</source>
<translation type="unfinished"></translation></message>
<message><source>Choose another one in Settings &gt; Options &gt; GeoSAM2, or set up the engine.</source>
<translation type="unfinished"></translation></message>
<message><source>Choose the imagery that the object was made from.</source>
<translation type="unfinished"></translation></message>
<message><source>Click inside an object on the map.</source>
<translation type="unfinished"></translation></message>
<message><source>Close</source>
<translation type="unfinished"></translation></message>
<message><source>Copy report</source>
<translation type="unfinished"></translation></message>
<message><source>Details</source>
<translation type="unfinished"></translation></message>
<message><source>Device (empty: automatic)</source>
<translation type="unfinished"></translation></message>
<message><source>Downloads about 3 GB (PyTorch with CUDA) and needs about 7 GB on disk.</source>
<translation type="unfinished"></translation></message>
<message><source>Downloads about 400 MB and needs about 1.5 GB on disk.</source>
<translation type="unfinished"></translation></message>
<message><source>Engine status</source>
<translation type="unfinished"></translation></message>
<message><source>Engine {version}, {device}</source>
<translation type="unfinished"></translation></message>
<message><source>Enter accepts; more clicks correct.</source>
<translation type="unfinished"></translation></message>
<message><source>Extent</source>
<translation type="unfinished"></translation></message>
<message><source>Finds every object of a raster layer or basemap and writes it as a polygon. Give an extent and a cell size for a basemap: it has no end. Cancelling keeps nothing in a temporary layer; write to a file to keep what was finished.</source>
<translation type="unfinished"></translation></message>
<message><source>Finest</source>
<translation type="unfinished"></translation></message>
<message><source>Flag GeoSAM2 objects of low quality</source>
<translation type="unfinished"></translation></message>
<message><source>Flag objects below this score</source>
<translation type="unfinished"></translation></message>
<message><source>Flag objects below this stability</source>
<translation type="unfinished"></translation></message>
<message><source>Flag objects of low quality</source>
<translation type="unfinished"></translation></message>
<message><source>Folder of the managed environment</source>
<translation type="unfinished"></translation></message>
<message><source>Folder of wheels</source>
<translation type="unfinished"></translation></message>
<message><source>Folder of wheels, to install without a network (optional)</source>
<translation type="unfinished"></translation></message>
<message><source>Follow across the map</source>
<translation type="unfinished"></translation></message>
<message><source>Following the object...</source>
<translation type="unfinished"></translation></message>
<message><source>GeoSAM2</source>
<translation type="unfinished"></translation></message>
<message><source>GeoSAM2 follows an object</source>
<translation type="unfinished"></translation></message>
<message><source>GeoSAM2 has no engine yet.</source>
<translation type="unfinished"></translation></message>
<message><source>GeoSAM2 objects</source>
<translation type="unfinished"></translation></message>
<message><source>GeoSAM2 panel</source>
<translation type="unfinished"></translation></message>
<message><source>GeoSAM2: polygons from imagery</source>
<translation type="unfinished"></translation></message>
<message><source>Help</source>
<translation type="unfinished"></translation></message>
<message><source>High resolution</source>
<translation type="unfinished"></translation></message>
<message><source>Imagery</source>
<translation type="unfinished"></translation></message>
<message><source>Imagery is missing: {reason}</source>
<translation type="unfinished"></translation></message>
<message><source>Install PyTorch</source>
<translation type="unfinished"></translation></message>
<message><source>Install geosam2</source>
<translation type="unfinished"></translation></message>
<message><source>Install it there (pip install geosam2), or set up the engine.</source>
<translation type="unfinished"></translation></message>
<message><source>Left click includes, right click excludes, drag draws a box, Enter accepts.</source>
<translation type="unfinished"></translation></message>
<message><source>Load the clicks of the selected object and change them.</source>
<translation type="unfinished"></translation></message>
<message><source>Look at it again: low score, or cut at the edge.</source>
<translation type="unfinished"></translation></message>
<message><source>Looking...</source>
<translation type="unfinished"></translation></message>
<message><source>Make the environment</source>
<translation type="unfinished"></translation></message>
<message><source>Makes one polygon for each feature of a layer: a point (or the points of a multipoint) is a click, a polygon or line is taken as a box. Objects that reach the border of a frame are followed across the imagery if wanted.</source>
<translation type="unfinished"></translation></message>
<message><source>Mark and select the objects that should be looked at.</source>
<translation type="unfinished"></translation></message>
<message><source>Model</source>
<translation type="unfinished"></translation></message>
<message><source>Model {model} on {device}.</source>
<translation type="unfinished"></translation></message>
<message><source>New GeoPackage</source>
<translation type="unfinished"></translation></message>
<message><source>New GeoPackage...</source>
<translation type="unfinished"></translation></message>
<message><source>New scratch layer</source>
<translation type="unfinished"></translation></message>
<message><source>No Python was found. Install one from python.org, or choose it in the options.</source>
<translation type="unfinished"></translation></message>
<message><source>No right to write there. Choose another folder in the options.</source>
<translation type="unfinished"></translation></message>
<message><source>Nothing is downloaded: packages come from the folder of wheels. About 1 GB on disk.</source>
<translation type="unfinished"></translation></message>
<message><source>Nothing is left of the object: others cover it already.</source>
<translation type="unfinished"></translation></message>
<message><source>Nothing was found there: add a point, or draw a box.</source>
<translation type="unfinished"></translation></message>
<message><source>Number of objects</source>
<translation type="unfinished"></translation></message>
<message><source>Objects</source>
<translation type="unfinished"></translation></message>
<message><source>Objects that reach the border of the frame are followed.</source>
<translation type="unfinished"></translation></message>
<message><source>Open edges</source>
<translation type="unfinished"></translation></message>
<message><source>Packages to install</source>
<translation type="unfinished"></translation></message>
<message><source>Paused: click to correct, Esc to go on, Enter to accept.</source>
<translation type="unfinished"></translation></message>
<message><source>Points or boxes</source>
<translation type="unfinished"></translation></message>
<message><source>Press Esc to pause, then click to correct.</source>
<translation type="unfinished"></translation></message>
<message><source>Press Set up: it takes a few minutes, once.</source>
<translation type="unfinished"></translation></message>
<message><source>Python that has geosam2</source>
<translation type="unfinished"></translation></message>
<message><source>Rapid</source>
<translation type="unfinished"></translation></message>
<message><source>Refine GeoSAM2 object</source>
<translation type="unfinished"></translation></message>
<message><source>Remove the last point or box (Backspace).</source>
<translation type="unfinished"></translation></message>
<message><source>Resume the run</source>
<translation type="unfinished"></translation></message>
<message><source>Score</source>
<translation type="unfinished"></translation></message>
<message><source>Segment by clicking</source>
<translation type="unfinished"></translation></message>
<message><source>Segment everything</source>
<translation type="unfinished"></translation></message>
<message><source>Segment everything...</source>
<translation type="unfinished"></translation></message>
<message><source>Segment from points or boxes</source>
<translation type="unfinished"></translation></message>
<message><source>Select one object that GeoSAM2 made (its field prompt is needed).</source>
<translation type="unfinished"></translation></message>
<message><source>Set &amp;up the engine...</source>
<translation type="unfinished"></translation></message>
<message><source>Set up the GeoSAM2 engine</source>
<translation type="unfinished"></translation></message>
<message><source>Set up the engine...</source>
<translation type="unfinished"></translation></message>
<message><source>Set up...</source>
<translation type="unfinished"></translation></message>
<message><source>Show another reading of the same click (Tab).</source>
<translation type="unfinished"></translation></message>
<message><source>Smallest area in square metres</source>
<translation type="unfinished"></translation></message>
<message><source>Stability</source>
<translation type="unfinished"></translation></message>
<message><source>Start</source>
<translation type="unfinished"></translation></message>
<message><source>Starts the engine and reports its version and device, or why it does not start.</source>
<translation type="unfinished"></translation></message>
<message><source>Status</source>
<translation type="unfinished"></translation></message>
<message><source>Stop</source>
<translation type="unfinished"></translation></message>
<message><source>Stopped after {count} objects.</source>
<translation type="unfinished"></translation></message>
<message><source>Stopped. Press Start to go on from here.</source>
<translation type="unfinished"></translation></message>
<message><source>Take &amp;back</source>
<translation type="unfinished"></translation></message>
<message><source>The chosen Python has no geosam2.</source>
<translation type="unfinished"></translation></message>
<message><source>The click cannot be used: {reason}</source>
<translation type="unfinished"></translation></message>
<message><source>The details say how far it came.</source>
<translation type="unfinished"></translation></message>
<message><source>The details say why.</source>
<translation type="unfinished"></translation></message>
<message><source>The disk is full.</source>
<translation type="unfinished"></translation></message>
<message><source>The engine did not answer within {seconds} seconds.</source>
<translation type="unfinished"></translation></message>
<message><source>The engine did not start (exit code {code}).</source>
<translation type="unfinished"></translation></message>
<message><source>The engine has ended unexpectedly (exit code {code}).</source>
<translation type="unfinished"></translation></message>
<message><source>The engine is ready.</source>
<translation type="unfinished"></translation></message>
<message><source>The engine reports: {reason}</source>
<translation type="unfinished"></translation></message>
<message><source>The engine speaks protocol {theirs}, this plugin {ours}.</source>
<translation type="unfinished"></translation></message>
<message><source>The engine's Python cannot be started: {program}</source>
<translation type="unfinished"></translation></message>
<message><source>The extent does not touch the imagery.</source>
<translation type="unfinished"></translation></message>
<message><source>The folder of wheels does not exist: {folder}</source>
<translation type="unfinished"></translation></message>
<message><source>The layer {name} cannot be edited.</source>
<translation type="unfinished"></translation></message>
<message><source>The layer {name} has no field score.</source>
<translation type="unfinished"></translation></message>
<message><source>The layer {name} refused the object.</source>
<translation type="unfinished"></translation></message>
<message><source>The network runs in its own Python, outside QGIS. This makes a folder with that Python's packages; delete the folder to remove everything.</source>
<translation type="unfinished"></translation></message>
<message><source>The next click starts it again.</source>
<translation type="unfinished"></translation></message>
<message><source>The object has several parts, but the layer holds single polygons.</source>
<translation type="unfinished"></translation></message>
<message><source>The proxy refused the connection. Check QGIS's network settings.</source>
<translation type="unfinished"></translation></message>
<message><source>The proxy wants a login. Enter it in QGIS's network settings.</source>
<translation type="unfinished"></translation></message>
<message><source>The raster {name} has no coordinate system or no extent.</source>
<translation type="unfinished"></translation></message>
<message><source>The secure connection was refused; a virus scanner or proxy may be in between.</source>
<translation type="unfinished"></translation></message>
<message><source>The step "{title}" failed; the log says why.</source>
<translation type="unfinished"></translation></message>
<message><source>There is no connection to the package server.</source>
<translation type="unfinished"></translation></message>
<message><source>There is no imagery to segment.</source>
<translation type="unfinished"></translation></message>
<message><source>This Python cannot make environments. Install python3-venv.</source>
<translation type="unfinished"></translation></message>
<message><source>This place cannot be converted to the imagery's coordinate system.</source>
<translation type="unfinished"></translation></message>
<message><source>Try again</source>
<translation type="unfinished"></translation></message>
<message><source>Update whichever is older: geosam2 {version} is installed.</source>
<translation type="unfinished"></translation></message>
<message><source>Use what is there</source>
<translation type="unfinished"></translation></message>
<message><source>Used now</source>
<translation type="unfinished"></translation></message>
<message><source>Wait for imagery at most</source>
<translation type="unfinished"></translation></message>
<message><source>Without CUDA (smaller; for computers without an NVIDIA card)</source>
<translation type="unfinished"></translation></message>
<message><source>frames at most</source>
<translation type="unfinished"></translation></message>
<message><source>none yet</source>
<translation type="unfinished"></translation></message>
<message><source>the imagery did not arrive in time</source>
<translation type="unfinished"></translation></message>
<message><source>{count} objects to look at are selected.</source>
<translation type="unfinished"></translation></message>
<message><source>{done} frames, {waiting} waiting</source>
<translation type="unfinished"></translation></message>
<message><source>{file} cannot be written: {reason}</source>
<translation type="unfinished"></translation></message>
<message><source>{file} exists already. Choose another name, or add the file to the project.</source>
<translation type="unfinished"></translation></message>
<message><source>{percent} % of a window has no imagery. Nothing was written.</source>
<translation type="unfinished"></translation></message>
<message><source>{percent} % of a window has no imagery; it is left out.</source>
<translation type="unfinished"></translation></message>
<message><source>{program} cannot be started.</source>
<translation type="unfinished"></translation></message>
</context>
</TS>
