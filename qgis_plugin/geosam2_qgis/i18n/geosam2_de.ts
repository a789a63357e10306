<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE TS>
<TS version="2.1" language="de">
<context>
<name>GeoSAM2</name>
<message><source>&amp;Accept (Enter)</source>
<translation>&amp;Übernehmen (Enter)</translation></message>
<message><source>&amp;Click on the map</source>
<translation>&amp;Auf die Karte klicken</translation></message>
<message><source>&amp;Detail</source>
<translation>&amp;Detail</translation></message>
<message><source>&amp;Everything on the screen...</source>
<translation>&amp;Alles auf dem Bildschirm ...</translation></message>
<message><source>&amp;Flag low quality</source>
<translation>&amp;Schwache markieren</translation></message>
<message><source>&amp;Imagery</source>
<translation>&amp;Bilddaten</translation></message>
<message><source>&amp;Model</source>
<translation>&amp;Modell</translation></message>
<message><source>&amp;Output</source>
<translation>A&amp;usgabe</translation></message>
<message><source>&amp;Pause (Esc)</source>
<translation>&amp;Pause (Esc)</translation></message>
<message><source>&amp;Resume (Esc)</source>
<translation>&amp;Weiter (Esc)</translation></message>
<message><source>A package was not found for this Python ({python}).</source>
<translation>Für dieses Python ({python}) wurde ein Paket nicht gefunden.</translation></message>
<message><source>A run on this imagery was interrupted.</source>
<translation>Ein Lauf auf diesen Bilddaten wurde unterbrochen.</translation></message>
<message><source>Add GeoSAM2 object</source>
<translation>GeoSAM2-Objekt hinzufügen</translation></message>
<message><source>Add a raster layer or a basemap with a coordinate system, and choose it.</source>
<translation>Fügen Sie einen Rasterlayer oder eine Hintergrundkarte mit Koordinatensystem hinzu und wählen Sie sie aus.</translation></message>
<message><source>Added to {layer}: {area}.</source>
<translation>Zu {layer} hinzugefügt: {area}.</translation></message>
<message><source>As on the screen</source>
<translation>Wie auf dem Bildschirm</translation></message>
<message><source>Automatic</source>
<translation>Automatisch</translation></message>
<message><source>Browse...</source>
<translation>Durchsuchen ...</translation></message>
<message><source>Ca&amp;ncel</source>
<translation>Abbre&amp;chen</translation></message>
<message><source>Cell size in the raster's units (0: the raster's own)</source>
<translation>Zellgröße in Einheiten des Rasters (0: die des Rasters)</translation></message>
<message><source>Check the engine</source>
<translation>Rechenkern prüfen</translation></message>
<message><source>Choose a polygon layer in the layer list.</source>
<translation>Wählen Sie einen Polygonlayer in der Layerliste.</translation></message>
<message><source>Choose another one in Settings &gt; Options &gt; GeoSAM2, or set up the engine.</source>
<translation>Wählen Sie ein anderes unter Einstellungen &gt; Optionen &gt; GeoSAM2 oder richten Sie den Rechenkern ein.</translation></message>
<message><source>Choose the imagery that the object was made from.</source>
<translation>Wählen Sie die Bilddaten, aus denen das Objekt entstanden ist.</translation></message>
<message><source>Click inside an object on the map.</source>
<translation>Klicken Sie auf der Karte in ein Objekt.</translation></message>
<message><source>Close</source>
<translation>Schließen</translation></message>
<message><source>Copy report</source>
<translation>Bericht kopieren</translation></message>
<message><source>Details</source>
<translation>Einzelheiten</translation></message>
<message><source>Device (empty: automatic)</source>
<translation>Gerät (leer: automatisch)</translation></message>
<message><source>Downloads about 3 GB (PyTorch with CUDA) and needs about 7 GB on disk.</source>
<translation>Lädt etwa 3 GB herunter (PyTorch mit CUDA) und braucht etwa 7 GB auf der Festplatte.</translation></message>
<message><source>Downloads about 400 MB and needs about 1.5 GB on disk.</source>
<translation>Lädt etwa 400 MB herunter und braucht etwa 1,5 GB auf der Festplatte.</translation></message>
<message><source>Engine status</source>
<translation>Zustand des Rechenkerns</translation></message>
<message><source>Engine {version}: loading the model...</source>
<translation>Rechenkern {version}: das Modell wird geladen ...</translation></message>
<message><source>Engine: model {model} on {device}</source>
<translation>Rechenkern: Modell {model} auf {device}</translation></message>
<message><source>Enter accepts; more clicks correct.</source>
<translation>Enter übernimmt; weitere Klicks verbessern.</translation></message>
<message><source>Extent</source>
<translation>Ausdehnung</translation></message>
<message><source>Finds every object of a raster layer or basemap and writes it as a polygon. Give an extent and a cell size for a basemap: it has no end. Cancelling keeps nothing in a temporary layer; write to a file to keep what was finished.</source>
<translation>Findet jedes Objekt eines Rasterlayers oder einer Hintergrundkarte und schreibt es als Polygon. Geben Sie bei einer Hintergrundkarte Ausdehnung und Zellgröße an, denn sie hat kein Ende. Beim Abbrechen bleibt in einem temporären Layer nichts; schreiben Sie in eine Datei, um Fertiges zu behalten.</translation></message>
<message><source>Finest</source>
<translation>Feinste Stufe</translation></message>
<message><source>Flag GeoSAM2 objects of low quality</source>
<translation>Schwache GeoSAM2-Objekte markieren</translation></message>
<message><source>Flag objects below this score</source>
<translation>Objekte unter dieser Bewertung markieren</translation></message>
<message><source>Flag objects below this stability</source>
<translation>Objekte unter dieser Stabilität markieren</translation></message>
<message><source>Flag objects of low quality</source>
<translation>Schwache Objekte markieren</translation></message>
<message><source>Folder of the managed environment</source>
<translation>Ordner der verwalteten Umgebung</translation></message>
<message><source>Folder of wheels</source>
<translation>Ordner mit Wheels</translation></message>
<message><source>Folder of wheels, to install without a network (optional)</source>
<translation>Ordner mit Wheels zur Installation ohne Netz (freiwillig)</translation></message>
<message><source>Follow across the map</source>
<translation>Über die Karte verfolgen</translation></message>
<message><source>Follow objects through dates</source>
<translation>Objekte durch die Zeit verfolgen</translation></message>
<message><source>Following the object...</source>
<translation>Das Objekt wird verfolgt ...</translation></message>
<message><source>GeoSAM2</source>
<translation>GeoSAM2</translation></message>
<message><source>GeoSAM2 follows an object</source>
<translation>GeoSAM2 verfolgt ein Objekt</translation></message>
<message><source>GeoSAM2 has no engine yet.</source>
<translation>GeoSAM2 hat noch keinen Rechenkern.</translation></message>
<message><source>GeoSAM2 objects</source>
<translation>GeoSAM2-Objekte</translation></message>
<message><source>GeoSAM2 panel</source>
<translation>GeoSAM2-Bedienfeld</translation></message>
<message><source>GeoSAM2: polygons from imagery</source>
<translation>GeoSAM2: Polygone aus Bilddaten</translation></message>
<message><source>Help</source>
<translation>Hilfe</translation></message>
<message><source>High resolution</source>
<translation>Hohe Auflösung</translation></message>
<message><source>Imagery</source>
<translation>Bilddaten</translation></message>
<message><source>Imagery is missing: {reason}</source>
<translation>Bilddaten fehlen: {reason}</translation></message>
<message><source>Imagery, a layer for each date</source>
<translation>Bilder, ein Layer für jeden Zeitpunkt</translation></message>
<message><source>Install PyTorch</source>
<translation>PyTorch installieren</translation></message>
<message><source>Install geosam2</source>
<translation>geosam2 installieren</translation></message>
<message><source>Install it there (pip install geosam2), or set up the engine.</source>
<translation>Installieren Sie es dort (pip install geosam2) oder richten Sie den Rechenkern ein.</translation></message>
<message><source>Layer on which the points or boxes were made (default: the earliest)</source>
<translation>Layer, auf dem die Punkte oder Rechtecke gesetzt wurden (Vorgabe: der früheste)</translation></message>
<message><source>Left click includes, right click excludes, drag draws a box, Enter accepts.</source>
<translation>Linksklick schließt ein, Rechtsklick schließt aus, Ziehen ergibt einen Rahmen, Enter übernimmt.</translation></message>
<message><source>Load the clicks of the selected object and change them.</source>
<translation>Die Klicks des gewählten Objekts laden und ändern.</translation></message>
<message><source>Look at it again: low score, or cut at the edge.</source>
<translation>Bitte ansehen: schwach bewertet oder am Rand abgeschnitten.</translation></message>
<message><source>Looking...</source>
<translation>Wird angesehen ...</translation></message>
<message><source>Looks for each object, pointed at on one date, on imagery of other dates, and writes a polygon for each object and date; without a geometry where it was not seen. The layers need one coordinate system and one grid of pixels. A layer's date is its fixed temporal range if it has one, else the date in its name, else its name.</source>
<translation>Sucht jedes Objekt, auf das zu einem Zeitpunkt gezeigt wurde, auf Bildern anderer Zeitpunkte und schreibt ein Polygon für jedes Objekt und jeden Zeitpunkt; ohne Geometrie, wo es nicht zu sehen war. Die Layer brauchen ein Koordinatensystem und ein gemeinsames Pixelraster. Der Zeitpunkt eines Layers ist sein fester Zeitbereich, falls er einen hat, sonst das Datum in seinem Namen, sonst der Name.</translation></message>
<message><source>Make the environment</source>
<translation>Umgebung anlegen</translation></message>
<message><source>Makes one polygon for each feature of a layer: a point (or the points of a multipoint) is a click, a polygon or line is taken as a box. Objects that reach the border of a frame are followed across the imagery if wanted.</source>
<translation>Macht aus jedem Objekt eines Layers ein Polygon: Ein Punkt (oder die Punkte eines Mehrfachpunkts) ist ein Klick, ein Polygon oder eine Linie gilt als Rahmen. Objekte, die den Rand eines Bildausschnitts erreichen, werden auf Wunsch über die Bilddaten verfolgt.</translation></message>
<message><source>Mark and select the objects that should be looked at.</source>
<translation>Objekte, die man ansehen sollte, markieren und auswählen.</translation></message>
<message><source>Model</source>
<translation>Modell</translation></message>
<message><source>New GeoPackage</source>
<translation>Neues GeoPackage</translation></message>
<message><source>New GeoPackage...</source>
<translation>Neues GeoPackage ...</translation></message>
<message><source>New scratch layer</source>
<translation>Neuer temporärer Layer</translation></message>
<message><source>No Python was found. Install one from python.org, or choose it in the options.</source>
<translation>Kein Python gefunden. Installieren Sie eines von python.org oder wählen Sie es in den Optionen.</translation></message>
<message><source>No right to write there. Choose another folder in the options.</source>
<translation>Dort darf nicht geschrieben werden. Wählen Sie in den Optionen einen anderen Ordner.</translation></message>
<message><source>Nothing is downloaded: packages come from the folder of wheels. About 1 GB on disk.</source>
<translation>Nichts wird heruntergeladen: Die Pakete kommen aus dem Ordner mit Wheels. Etwa 1 GB auf der Festplatte.</translation></message>
<message><source>Nothing is left of the object: others cover it already.</source>
<translation>Vom Objekt bleibt nichts: Andere bedecken es schon.</translation></message>
<message><source>Nothing was found there: add a point, or draw a box.</source>
<translation>Dort wurde nichts gefunden: Setzen Sie einen weiteren Punkt oder ziehen Sie einen Rahmen.</translation></message>
<message><source>Number of objects</source>
<translation>Anzahl der Objekte</translation></message>
<message><source>O&amp;ther shape</source>
<translation>A&amp;ndere Form</translation></message>
<message><source>Objects</source>
<translation>Objekte</translation></message>
<message><source>Objects that reach the border of the frame are followed.</source>
<translation>Objekte, die den Rand des Ausschnitts erreichen, werden verfolgt.</translation></message>
<message><source>Open edges</source>
<translation>Offene Ränder</translation></message>
<message><source>Packages to install</source>
<translation>Zu installierende Pakete</translation></message>
<message><source>Paused: click to correct, Esc to go on, Enter to accept.</source>
<translation>Pause: Klicken verbessert, Esc macht weiter, Enter übernimmt.</translation></message>
<message><source>Points or boxes</source>
<translation>Punkte oder Rahmen</translation></message>
<message><source>Press Esc to pause, then click to correct.</source>
<translation>Esc hält an, dann verbessern Klicks.</translation></message>
<message><source>Press Set up: it takes a few minutes, once.</source>
<translation>Drücken Sie Einrichten: Das dauert einmal ein paar Minuten.</translation></message>
<message><source>Python that has geosam2</source>
<translation>Python mit geosam2</translation></message>
<message><source>Rapid</source>
<translation>Schnell</translation></message>
<message><source>Refine &amp;selected</source>
<translation>Ge&amp;wähltes verfeinern</translation></message>
<message><source>Refine GeoSAM2 object</source>
<translation>GeoSAM2-Objekt verfeinern</translation></message>
<message><source>Remove the last point or box (Backspace).</source>
<translation>Letzten Punkt oder Rahmen entfernen (Rücktaste).</translation></message>
<message><source>Resume the run</source>
<translation>Lauf fortsetzen</translation></message>
<message><source>Score</source>
<translation>Bewertung</translation></message>
<message><source>Segment by clicking</source>
<translation>Durch Klicken segmentieren</translation></message>
<message><source>Segment everything</source>
<translation>Alles segmentieren</translation></message>
<message><source>Segment everything...</source>
<translation>Alles segmentieren ...</translation></message>
<message><source>Segment from points or boxes</source>
<translation>Aus Punkten oder Rahmen segmentieren</translation></message>
<message><source>Select one object that GeoSAM2 made (its field prompt is needed).</source>
<translation>Wählen Sie ein Objekt, das GeoSAM2 gemacht hat (sein Feld prompt wird gebraucht).</translation></message>
<message><source>Set &amp;up the engine...</source>
<translation>Rechenkern ein&amp;richten ...</translation></message>
<message><source>Set up the GeoSAM2 engine</source>
<translation>GeoSAM2-Rechenkern einrichten</translation></message>
<message><source>Set up the engine...</source>
<translation>Rechenkern einrichten ...</translation></message>
<message><source>Set up...</source>
<translation>Einrichten ...</translation></message>
<message><source>Show another reading of a single click (A); more clicks leave no choice.</source>
<translation>Eine andere Deutung eines einzelnen Klicks zeigen (A); weitere Klicks lassen keine Wahl.</translation></message>
<message><source>Smallest area in square metres</source>
<translation>Kleinste Fläche in Quadratmetern</translation></message>
<message><source>Stability</source>
<translation>Stabilität</translation></message>
<message><source>Start</source>
<translation>Start</translation></message>
<message><source>Starts the engine and reports its version and device, or why it does not start.</source>
<translation>Startet den Rechenkern und nennt Version und Gerät oder warum er nicht startet.</translation></message>
<message><source>Status</source>
<translation>Zustand</translation></message>
<message><source>Stop</source>
<translation>Anhalten</translation></message>
<message><source>Stopped after {count} objects.</source>
<translation>Nach {count} Objekten angehalten.</translation></message>
<message><source>Stopped. Press Start to go on from here.</source>
<translation>Angehalten. Start macht hier weiter.</translation></message>
<message><source>Take &amp;back</source>
<translation>&amp;Zurücknehmen</translation></message>
<message><source>The chosen Python has no geosam2.</source>
<translation>Das gewählte Python hat kein geosam2.</translation></message>
<message><source>The click cannot be used: {reason}</source>
<translation>Der Klick ist nicht zu gebrauchen: {reason}</translation></message>
<message><source>The details say how far it came.</source>
<translation>Die Einzelheiten sagen, wie weit er kam.</translation></message>
<message><source>The details say why.</source>
<translation>Die Einzelheiten sagen, warum.</translation></message>
<message><source>The disk is full.</source>
<translation>Die Festplatte ist voll.</translation></message>
<message><source>The engine did not answer within {seconds} seconds.</source>
<translation>Der Rechenkern hat innerhalb von {seconds} Sekunden nicht geantwortet.</translation></message>
<message><source>The engine did not start (exit code {code}).</source>
<translation>Der Rechenkern ist nicht gestartet (Code {code}).</translation></message>
<message><source>The engine has ended unexpectedly (exit code {code}).</source>
<translation>Der Rechenkern hat sich unerwartet beendet (Code {code}).</translation></message>
<message><source>The engine is ready.</source>
<translation>Der Rechenkern ist bereit.</translation></message>
<message><source>The engine is starting...</source>
<translation>Der Rechenkern startet ...</translation></message>
<message><source>The engine reports: {reason}</source>
<translation>Der Rechenkern meldet: {reason}</translation></message>
<message><source>The engine speaks protocol {theirs}, this plugin {ours}.</source>
<translation>Der Rechenkern spricht Protokoll {theirs}, diese Erweiterung {ours}.</translation></message>
<message><source>The engine's Python cannot be started: {program}</source>
<translation>Das Python des Rechenkerns ist nicht zu starten: {program}</translation></message>
<message><source>The extent does not touch the imagery.</source>
<translation>Die Ausdehnung berührt die Bilddaten nicht.</translation></message>
<message><source>The folder of wheels does not exist: {folder}</source>
<translation>Den Ordner mit Wheels gibt es nicht: {folder}</translation></message>
<message><source>The layer {name} cannot be edited.</source>
<translation>Der Layer {name} ist nicht bearbeitbar.</translation></message>
<message><source>The layer {name} has no field score.</source>
<translation>Der Layer {name} hat kein Feld score.</translation></message>
<message><source>The layer {name} refused the object.</source>
<translation>Der Layer {name} hat das Objekt abgelehnt.</translation></message>
<message><source>The network runs in its own Python, outside QGIS. This makes a folder with that Python's packages; delete the folder to remove everything.</source>
<translation>Das Netz läuft in einem eigenen Python außerhalb von QGIS. Hier entsteht ein Ordner mit dessen Paketen; wer ihn löscht, entfernt alles.</translation></message>
<message><source>The next click starts it again.</source>
<translation>Der nächste Klick startet ihn neu.</translation></message>
<message><source>The object has several parts, but the layer holds single polygons.</source>
<translation>Das Objekt hat mehrere Teile, der Layer hält aber einzelne Polygone.</translation></message>
<message><source>The output refused an object.</source>
<translation>Die Ausgabe hat ein Objekt nicht angenommen.</translation></message>
<message><source>The proxy refused the connection. Check QGIS's network settings.</source>
<translation>Der Proxy hat die Verbindung verweigert. Prüfen Sie die Netzwerkeinstellungen von QGIS.</translation></message>
<message><source>The proxy wants a login. Enter it in QGIS's network settings.</source>
<translation>Der Proxy verlangt eine Anmeldung. Tragen Sie sie in den Netzwerkeinstellungen von QGIS ein.</translation></message>
<message><source>The raster {name} has no coordinate system or no extent.</source>
<translation>Das Raster {name} hat kein Koordinatensystem oder keine Ausdehnung.</translation></message>
<message><source>The secure connection was refused; a virus scanner or proxy may be in between.</source>
<translation>Die sichere Verbindung wurde abgelehnt; vielleicht ist ein Virenscanner oder Proxy dazwischen.</translation></message>
<message><source>The step "{title}" failed; the log says why.</source>
<translation>Der Schritt „{title}“ ist misslungen; das Protokoll sagt, warum.</translation></message>
<message><source>There is no connection to the package server.</source>
<translation>Es gibt keine Verbindung zum Paketserver.</translation></message>
<message><source>There is no imagery to segment.</source>
<translation>Es gibt keine Bilddaten zum Segmentieren.</translation></message>
<message><source>This Python cannot make environments. Install python3-venv.</source>
<translation>Dieses Python kann keine Umgebungen anlegen. Installieren Sie python3-venv.</translation></message>
<message><source>This place cannot be converted to the imagery's coordinate system.</source>
<translation>Dieser Ort lässt sich nicht in das Koordinatensystem der Bilddaten umrechnen.</translation></message>
<message><source>Try again</source>
<translation>Noch einmal</translation></message>
<message><source>Update whichever is older: geosam2 {version} is installed.</source>
<translation>Aktualisieren Sie das ältere: geosam2 {version} ist installiert.</translation></message>
<message><source>Use what is there</source>
<translation>Vorhandenes verwenden</translation></message>
<message><source>Used now</source>
<translation>Jetzt verwendet</translation></message>
<message><source>Wait for imagery at most</source>
<translation>Höchstens auf Bilddaten warten</translation></message>
<message><source>While an object is followed: pause and go on (Esc).</source>
<translation>Während ein Objekt verfolgt wird: anhalten und fortsetzen (Esc).</translation></message>
<message><source>Without CUDA (smaller; for computers without an NVIDIA card)</source>
<translation>Ohne CUDA (kleiner; für Rechner ohne NVIDIA-Karte)</translation></message>
<message><source>Write the object into the output layer, once there is one.</source>
<translation>Das Objekt in den Ausgabelayer schreiben, sobald eines gefunden ist.</translation></message>
<message><source>frames at most</source>
<translation>Ausschnitte höchstens</translation></message>
<message><source>none yet</source>
<translation>noch keines</translation></message>
<message><source>the imagery did not arrive in time</source>
<translation>die Bilddaten kamen nicht rechtzeitig</translation></message>
<message><source>{count} objects to look at are selected.</source>
<translation>{count} Objekte zum Ansehen sind ausgewählt.</translation></message>
<message><source>{done} frames, {waiting} waiting</source>
<translation>{done} Ausschnitte, {waiting} warten</translation></message>
<message><source>{file} cannot be written: {reason}</source>
<translation>{file} ist nicht zu schreiben: {reason}</translation></message>
<message><source>{file} exists already. Choose another name, or add the file to the project.</source>
<translation>{file} gibt es schon. Wählen Sie einen anderen Namen oder fügen Sie die Datei dem Projekt hinzu.</translation></message>
<message><source>{name} is none of the layers of imagery.</source>
<translation>{name} ist keiner der Bild-Layer.</translation></message>
<message><source>{percent} % of a window has no imagery. Nothing was written.</source>
<translation>{percent} % eines Ausschnitts haben keine Bilddaten. Nichts wurde geschrieben.</translation></message>
<message><source>{percent} % of a window has no imagery; it is left out.</source>
<translation>{percent} % eines Ausschnitts haben keine Bilddaten und bleiben frei.</translation></message>
<message><source>{program} cannot be started.</source>
<translation>{program} ist nicht zu starten.</translation></message>
</context>
</TS>
